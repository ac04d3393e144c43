"""From frames to the patches that a vision tower reads, as Qwen2-VL's processor makes them.

Pixels stay uint8; the model normalises them on the device. The budget of pixels is per frame, so the resolution of a
frame depends on nothing that comes after it.
"""

import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from swjax.data.example import ExampleError
from swjax.streaming import DEFAULT_GEOMETRY, Geometry


def video_to_patches(
    frames: UInt8[np.ndarray, "frames height width 3"],
    *,
    min_pixels: int,
    max_pixels: int,
    original_size: tuple[int, int] | None = None,
    geometry: Geometry = DEFAULT_GEOMETRY,
) -> tuple[UInt8[np.ndarray, "patches pixels"], tuple[int, int, int]]:
    """Resize frames as Qwen2-VL's processor does (bicubic, sides rounded to whole merged patches) and cut them up.

    Args:
        frames: uint8[frames, height, width, 3], RGB, a whole number of temporal patches.
        min_pixels: smallest area of a resized frame.
        max_pixels: largest area of a resized frame.
        original_size: height and width that the frames had in the video, if they were resized before.
        geometry: sizes of patches and tokens.

    Returns:
        uint8[t * h * w, 3 * temporal_patch_size * patch_size**2] and the grid (t, h, w) in patches. Patches are
        ordered (t, h / merge, w / merge, merge row, merge column); the values of a patch (channel, frame, row,
        column).

    Raises:
        ExampleError: if a frame is more than 200 times as long as it is wide, or wide as it is long, or was resized
            to less than is wanted.
        ValueError: if the frames are not of the shape and type above.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be uint8[frames, height, width, 3], got {frames.dtype}{list(frames.shape)}")
    patch_size, merge_size, temporal_patch_size = geometry.patch_size, geometry.merge_size, geometry.temporal_patch_size
    if len(frames) == 0 or len(frames) % temporal_patch_size:
        raise ValueError(f"{len(frames)} frames are not a whole number of temporal patches of {temporal_patch_size}")
    height, width = size_for_model(
        frames.shape[1:3],
        original_size,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        factor=geometry.token_size,
    )
    resized = resize(frames, height, width)
    grid = len(frames) // temporal_patch_size, height // patch_size, width // patch_size
    blocks = resized.reshape(
        grid[0],
        temporal_patch_size,
        grid[1] // merge_size,
        merge_size,
        patch_size,
        grid[2] // merge_size,
        merge_size,
        patch_size,
        3,
    )
    patches = blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return np.ascontiguousarray(patches.reshape(grid[0] * grid[1] * grid[2], -1)), grid


def resize(
    frames: UInt8[np.ndarray, "frames height width 3"], height: int, width: int
) -> UInt8[np.ndarray, "frames resized_height resized_width 3"]:
    """Frames at another size, by the filter of Qwen2-VL's processor (bicubic).

    Args:
        frames: RGB.
        height, width: of the result, in pixels.

    Returns:
        The frames themselves, not a copy, where they have that size.
    """
    if frames.shape[1:3] == (height, width):
        return frames
    return np.stack(
        [np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)) for frame in frames]
    )


def size_for_model(
    size: tuple[int, ...],
    original_size: tuple[int, int] | None,
    *,
    min_pixels: int,
    max_pixels: int,
    factor: int,
) -> tuple[int, int]:
    """The size that the model sees frames at: it follows from the video, whether or not its frames were resized before.

    Resizing by the budget twice would give another grid than doing it once, for a quarter of the usual sizes.

    Args:
        size: height and width of the frames.
        original_size: those that they had in the video, if they were resized before.
        min_pixels: smallest area of a resized frame.
        max_pixels: largest area of a resized frame.
        factor: what sides are multiples of.

    Raises:
        ExampleError: if the frames were shrunk to less than is wanted, or one side is more than 200 times the other.
        ValueError: if the budget is empty or has no room for a token.
    """
    height, width = resized_size(
        *(original_size or size[:2]), min_pixels=min_pixels, max_pixels=max_pixels, factor=factor
    )
    if original_size is not None and (height > size[0] or width > size[1]):
        was_shrunk = any(
            side < min(before, round(before / factor) * factor)
            for side, before in zip(size, original_size, strict=True)
        )
        if was_shrunk:
            raise ExampleError(
                f"its frames are kept at {size[1]} x {size[0]} pixels, and max_pixels {max_pixels} wants {width} x "
                f"{height}, as the video itself would have; set max_pixels to what it was prepared with, or prepare it "
                f"again with --max-pixels {max_pixels}"
            )
    return height, width


def resized_size(height: int, width: int, *, min_pixels: int, max_pixels: int, factor: int) -> tuple[int, int]:
    """The size that Qwen2-VL's processor gives a frame: near its shape, whole factors, an area within the budget.

    The same sizes as transformers' `smart_resize`, which cannot be imported without torch where torch is installed.

    Args:
        height, width: of the picture.
        min_pixels, max_pixels: smallest and largest area of the result.
        factor: pixels on a side of a token.

    Raises:
        ExampleError: if one side is more than 200 times the other.
        ValueError: if the budget is empty or has no room for factor x factor pixels.
    """
    if not 0 < min_pixels <= max_pixels or max_pixels < factor**2:
        raise ValueError(
            f"a frame needs 0 < min_pixels <= max_pixels and room for one token ({factor**2} pixels), got min_pixels "
            f"{min_pixels} and max_pixels {max_pixels}"
        )
    sides = height, width
    if max(sides) > 200 * min(sides):
        raise ExampleError(f"a frame of {width} x {height} pixels is too long for its width; crop the video")
    counts = [round(side / factor) for side in sides]
    area = math.prod(counts) * factor**2
    if area > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        counts = [max(1, math.floor(side / shrink / factor)) for side in sides]
    elif area < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        counts = [math.ceil(side * grow / factor) for side in sides]
    return counts[0] * factor, counts[1] * factor
