"""Clips as records hold them: the sampled frames, at the size that the model sees, each a JPEG file.

JPEG, because it is the quickest to decode of what is small, and any frame can be read alone: H.264 takes half the room
and 1.4 times as long, raw pixels next to no time and five times the room (benchmarks/data.py, on a moving texture).
"""

import io
import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from swjax.data.example import EncodedClip, ExampleError

QUALITY = 95
"""Of the JPEG files: a difference of one or two steps in a pixel, below what resizing rounds away at sharp edges."""


def encode_clip(frames: UInt8[np.ndarray, "frames height width 3"], *, quality: int = QUALITY) -> tuple[bytes, ...]:
    """One JPEG file a frame.

    Args:
        frames: RGB.
        quality: of JPEG, 1 to 100.
    """
    encoded = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=quality)
        encoded.append(file.getvalue())
    return tuple(encoded)


def decode_clip(clip: EncodedClip, *, fps: float) -> UInt8[np.ndarray, "frames height width 3"]:
    """The frames of a clip at a rate that divides its own.

    Args:
        clip: the JPEG files.
        fps: of the frames that are wanted.

    Raises:
        ExampleError: if a frame is damaged, sizes differ, or the rate does not divide the clip's.
    """
    every = clip.fps / fps
    if every < 1 or not math.isclose(every, round(every), rel_tol=1e-6):
        raise ExampleError(
            f"{clip} holds {clip.fps:g} frames a second, of which {fps:g} cannot be taken; prepare it "
            f"again at {fps:g} fps"
        )
    frames = [_decode(data, clip) for data in clip.frames[:: round(every)]]
    if not frames:
        raise ExampleError(f"{clip} holds no frames; prepare it again")
    if any(frame.shape != frames[0].shape for frame in frames):
        raise ExampleError(f"{clip} holds frames of several sizes; prepare it again")
    return np.stack(frames)


def _decode(data: bytes, clip: EncodedClip) -> UInt8[np.ndarray, "height width 3"]:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return np.asarray(image.convert("RGB") if image.mode != "RGB" else image)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ExampleError(f"{clip} holds a damaged frame ({error}); prepare it again") from error
