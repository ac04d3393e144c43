"""Pictures as clients send them: checked before they are decoded, then made into frames as those of a file are."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from swjax.data.example import ExampleError
from swjax.inference.frames import Frame, make_frame
from swjax.serving.limits import Limits
from swjax.serving.protocol import ProtocolError

FORMATS = ("JPEG", "PNG", "WEBP")
MODES = ("RGB", "RGBA", "L", "LA", "P", "CMYK")


def check_picture(data: bytes, number: int, limits: Limits) -> tuple[int, int]:
    """Look at a picture's head, and no further; returns its width and height.

    Args:
        data: the file.
        number: of the picture in its video, 0 for the first.
        limits: how large it may be.

    Raises:
        ProtocolError: if it is too large, or no picture that is taken.
    """
    if len(data) > limits.max_message_bytes:
        raise ProtocolError(
            "too_big",
            f"picture {number} has {len(data)} bytes and may have {limits.max_message_bytes}; make it smaller or "
            "lower its quality",
        )
    try:
        size = _webp_size(data) if data[:4] == b"RIFF" else None  # Pillow would decode it to tell its size
        if size is None:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                size, mode = image.size, image.mode
            if mode not in MODES:
                raise ProtocolError(
                    "bad_picture", f"picture {number} has pixels of kind {mode}; send one with 8 bits a colour (RGB)"
                )
    except Image.DecompressionBombError as error:
        raise ProtocolError("too_big", f"picture {number} has far too many pixels; make it smaller") from error
    except _NO_PICTURE as error:
        raise ProtocolError("bad_picture", _unreadable(number, error)) from error
    if size[0] * size[1] > limits.max_picture_pixels:
        raise ProtocolError(
            "too_big",
            f"picture {number} has {size[0]} x {size[1]} pixels and may have {limits.max_picture_pixels} in all; "
            "make it smaller",
        )
    return size


def decode_frame(files: Sequence[bytes], number: int, *, fps: float, min_pixels: int, max_pixels: int) -> Frame:
    """Make a frame of the files of its pictures, which have been checked.

    Args:
        files: of the pictures, in order.
        number: of the first of them in the video.
        fps: pictures a second.
        min_pixels, max_pixels: area to which they are resized.

    Raises:
        ProtocolError: if one cannot be decoded, or they cannot be resized.
    """
    pictures = [_decode(data, number + index) for index, data in enumerate(files)]
    if any(picture.shape != pictures[0].shape for picture in pictures):
        raise ProtocolError("bad_picture", f"pictures from {number} on differ in size; send all of a video at one size")
    try:
        video_s = (number + len(files) - 1) / fps
        return make_frame(pictures, video_s=video_s, min_pixels=min_pixels, max_pixels=max_pixels)
    except ExampleError as error:
        raise ProtocolError("bad_picture", f"picture {number}: {error}") from error


_NO_PICTURE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, IndexError, Image.DecompressionBombError)


def _decode(data: bytes, number: int) -> UInt8[np.ndarray, "height width 3"]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except _NO_PICTURE as error:
        raise ProtocolError("bad_picture", _unreadable(number, error)) from error


def _unreadable(number: int, error: Exception) -> str:
    why = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
    return f"picture {number} cannot be read{why}; send a whole JPEG, PNG or WebP file in each binary message"


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height by the first chunk of a WebP file (RFC 9649, section 2)."""
    chunk = data[12:16]
    if data[8:12] != b"WEBP" or len(data) < 30:
        raise ValueError("its head is damaged")
    if chunk == b"VP8X":
        if data[20] & 0b10:
            raise ValueError("it is an animation")
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    raise ValueError("its head is damaged")
