"""Frames of a video as a session takes them: one temporal patch of Qwen2.5-VL, in the order of arrival."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from swjax.data.example import Video
from swjax.data.patches import TEMPORAL_PATCH_SIZE, video_to_patches
from swjax.data.video import VideoError, iter_frames


@dataclass(frozen=True)
class Frame:
    """One frame (temporal grid step).

    Attributes:
        patches: uint8[h * w, 1176] in the processor's order.
        grid_hw: patch rows and columns.
        video_s: time in the video, in seconds, of the later of its pictures.
    """

    patches: UInt8[np.ndarray, "patches pixels"]
    grid_hw: tuple[int, int]
    video_s: float


def read_frames(video: str | Video, *, fps: float, min_pixels: int, max_pixels: int) -> Iterator[Frame]:
    """Decode a video lazily, frame by frame; a last frame that is not whole is dropped.

    Raises:
        VideoError: if the video cannot be decoded or is shorter than one frame.
    """
    pictures: list[np.ndarray] = []
    count = 0
    for video_s, picture in iter_frames(video, fps):
        pictures.append(picture)
        if len(pictures) == TEMPORAL_PATCH_SIZE:
            patches, (_, rows, columns) = video_to_patches(
                np.stack(pictures), min_pixels=min_pixels, max_pixels=max_pixels
            )
            yield Frame(patches, (rows, columns), video_s)
            pictures = []
            count += 1
    if count == 0:
        raise VideoError(
            f"{video} is shorter than one frame step: it has {len(pictures)} picture(s) at {fps:g} fps and "
            f"{TEMPORAL_PATCH_SIZE} make a frame ({TEMPORAL_PATCH_SIZE / fps:g} s)"
        )
