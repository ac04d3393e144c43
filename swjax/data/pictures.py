"""Pictures of strangers: measured by their heads, counted before they are decoded, and then made into patches.

What a decoder does grows with the parts of a file as well as with its pixels: a JPEG of a hundred kilobytes may hold
thousands of scans, each of which goes over the whole picture, and a PNG a hundred thousand empty chunks. So the parts
are counted first, at the cost of a look at each.
"""

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from swjax.data.clips import decode_clip
from swjax.data.example import EncodedClip, ExampleError, Picture
from swjax.data.patches import video_to_patches
from swjax.storage import local_file
from swjax.streaming import DEFAULT_GEOMETRY, Geometry

FORMATS = ("JPEG", "PNG", "WEBP")
MODES = ("RGB", "RGBA", "L", "LA", "P", "CMYK")

MAX_PARTS = 2048
"""Segments of a JPEG, chunks of a PNG or WebP; a 2 MiB file has some hundreds where encoders cut it up small."""
MAX_SCANS = 32
"""Scans of a JPEG; progressive encoders write about ten."""

_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_NOT_8_BITS = "has pixels of kind {}; send one with 8 bits a colour (RGB)"
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SOS, _EOI, _SOI, _TEM = 0xDA, 0xD9, 0xD8, 0x01
_ALONE = frozenset({0x00, _TEM, _SOI, *range(0xD0, 0xD8)})


class PictureError(ValueError):
    """A picture cannot be used; the message continues "picture 7 ..."."""


def measure(data: bytes) -> tuple[int, int]:
    """Width and height by a file's head; nothing is decoded, and no more than `MAX_PARTS` parts are looked at.

    Raises:
        PictureError: if it is no JPEG, PNG or WebP file, has more than 8 bits a colour, or is an animation.
    """
    if data.startswith(b"\xff\xd8"):
        return _jpeg_size(data)
    if data.startswith(_PNG_HEAD):
        return _png_size(data)
    if data.startswith(b"RIFF"):
        return _webp_size(data)
    raise PictureError(_unreadable(""))


def count_parts(data: bytes) -> tuple[int, int]:
    """Parts (segments or chunks) and scans of a file that has been measured.

    Raises:
        PictureError: if there are too many.
    """
    if data.startswith(b"\xff\xd8"):
        markers = [marker for marker, _ in _jpeg_segments(data)]
        return len(markers), markers.count(_SOS)
    return sum(1 for _ in _chunks(data)), 0


def decode_picture(data: bytes, size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """Decode a picture, turned upright.

    Args:
        data: the file.
        size: width and height that it was measured to have.

    Raises:
        PictureError: if it cannot be decoded, or its head is not what it was taken for.
    """
    count_parts(data)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.size != size:
                raise PictureError(_unreadable(f"its head says {size} and what follows {image.size}"))
            if image.mode not in MODES:
                raise PictureError(_NOT_8_BITS.format(image.mode))
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (PictureError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise PictureError(_unreadable("")) from error
    except Exception as error:  # decoders raise what they like; a file is all that they are given
        raise PictureError(_unreadable(str(error))) from error


def read_picture(image: Picture) -> tuple[UInt8[np.ndarray, "height width 3"], tuple[int, int] | None]:
    """The pixels of an image, and the height and width that it had if a record holds it at another size.

    Raises:
        ExampleError: if it is missing or cannot be decoded.
    """
    if isinstance(image.file, EncodedClip):
        return decode_clip(image.file, fps=image.file.fps)[0], image.file.original_size
    try:
        data = Path(local_file(image.file)).read_bytes()
        return decode_picture(data, measure(data)), None
    except OSError as error:
        raise ExampleError(f"{image} cannot be read: {error.strerror or error}") from error
    except PictureError as error:
        raise ExampleError(f"{image} {str(error).partition(';')[0]}; give a JPEG, PNG or WebP file") from error


def pictures_to_patches(
    files: Sequence[bytes],
    sizes: Sequence[tuple[int, int]],
    number: int,
    *,
    min_pixels: int,
    max_pixels: int,
    geometry: Geometry = DEFAULT_GEOMETRY,
) -> tuple[UInt8[np.ndarray, "patches pixels"], tuple[int, int]]:
    """The patches of one frame, and their rows and columns.

    Args:
        files: of the frame's pictures, in order.
        sizes: width and height that each was measured to have.
        number: of the first of them in the video.
        min_pixels, max_pixels: area to which they are resized.
        geometry: sizes of patches and tokens.

    Raises:
        PictureError: if one cannot be decoded, or they cannot be resized; the message is a whole one.
    """
    pictures = []
    for index, (data, size) in enumerate(zip(files, sizes, strict=True)):
        try:
            pictures.append(decode_picture(data, size))
        except PictureError as error:
            raise PictureError(f"picture {number + index} {error}") from error
    if any(picture.shape != pictures[0].shape for picture in pictures):
        raise PictureError(f"pictures from {number} on differ in size; send all of a video at one size")
    try:
        patches, (_, rows, columns) = video_to_patches(
            np.stack(pictures), min_pixels=min_pixels, max_pixels=max_pixels, geometry=geometry
        )
    except ExampleError as error:
        raise PictureError(f"picture {number}: {error}") from error
    return patches, (rows, columns)


def _unreadable(why: str) -> str:
    shown = f" ({why[:200]})" if why else ""
    return f"cannot be read{shown}; send a whole JPEG, PNG or WebP file in each binary message"


def _too_many(what: str, most: int) -> PictureError:
    return PictureError(f"has more than {most} {what}; save it again as a plain JPEG or PNG file")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Markers of a JPEG file and where what follows each begins; bytes between them count as segments do."""
    at, parts, scans = 2, 0, 0
    while at + 2 <= len(data):
        parts += 1
        if parts > MAX_PARTS:
            raise _too_many("segments", MAX_PARTS)
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xFF:  # junk, or a byte that fills
            at += 1
            continue
        at += 2
        yield marker, at
        if marker == _EOI:
            return
        if marker in _ALONE:
            continue
        at += int.from_bytes(data[at : at + 2], "big")
        if marker == _SOS:
            scans += 1
            if scans > MAX_SCANS:
                raise _too_many("scans", MAX_SCANS)
            found = _AFTER_SCAN.search(data, at)
            at = found.start() if found else len(data)


def _jpeg_size(data: bytes) -> tuple[int, int]:
    for marker, at in _jpeg_segments(data):
        if marker in _SOF and at + 7 <= len(data):
            if data[at + 2] != 8:
                raise PictureError(_NOT_8_BITS.format(f"{data[at + 2]} bits"))
            height, width = (int.from_bytes(data[first : first + 2], "big") for first in (at + 3, at + 5))
            return _not_empty(width, height)
        if marker == _SOS:
            break
    raise PictureError(_unreadable("its head is damaged"))


def _chunks(data: bytes) -> Iterator[bytes]:
    """Names of the chunks of a PNG or WebP file."""
    is_png = data.startswith(_PNG_HEAD)
    at, parts = (8, 0) if is_png else (12, 0)
    while at + 8 <= len(data):
        parts += 1
        if parts > MAX_PARTS:
            raise _too_many("chunks", MAX_PARTS)
        if is_png:
            size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
            at += 12 + size
        else:
            size, name = int.from_bytes(data[at + 4 : at + 8], "little"), data[at : at + 4]
            at += 8 + size + size % 2
        yield name


def _png_size(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise PictureError(_unreadable("its head is damaged"))
    depth, kind = data[24], data[25]
    if depth > 8 or (depth == 1 and kind == 0):
        raise PictureError(_NOT_8_BITS.format(f"{depth} bits"))
    return _not_empty(int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))


def _webp_size(data: bytes) -> tuple[int, int]:
    """By the first chunk of a WebP file (RFC 9649, section 2)."""
    chunk = data[12:16]
    if data[8:12] == b"WEBP" and len(data) >= 30:
        if chunk == b"VP8X":
            if data[20] & 0b10:
                raise PictureError(_unreadable("it is an animation"))
            return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
        if chunk == b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        if chunk == b"VP8 ":
            width, height = (int.from_bytes(data[first : first + 2], "little") & 0x3FFF for first in (26, 28))
            return _not_empty(width, height)
    raise PictureError(_unreadable("its head is damaged"))


def _not_empty(width: int, height: int) -> tuple[int, int]:
    if not width or not height:
        raise PictureError(_unreadable("its head is damaged"))
    return width, height
