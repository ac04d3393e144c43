"""M-RoPE position ids (temporal, height, width) of pieces of a sequence, by Qwen2.5-VL's own rule."""

from types import ModuleType

import numpy as np
from jaxtyping import Int, Int32, Shaped

from swjax.streaming.arrays import XpArray


def text_positions(start: int | Int[XpArray, ""], length: int, *, xp: ModuleType = np) -> Int32[XpArray, "3 N"]:
    """Ids of text: all three rows count on together from `start`.

    Args:
        start: first id.
        length: number of tokens.
        xp: numpy or jax.numpy.
    """
    return xp.broadcast_to((start + xp.arange(length)).astype(xp.int32), (3, length))


def temporal_ids(
    frames: Int[XpArray, "*F"], temporal_stride: float | Shaped[XpArray, "*F"], *, xp: ModuleType = np
) -> Int32[XpArray, "*F"]:
    """Temporal ids of frames within their video: int(frame * temporal_stride).

    Args:
        frames: indices of frames, 0 for the video's first.
        temporal_stride: ids from one frame to the next, of all or of each.
        xp: numpy or jax.numpy. The product is taken in float32 by both, so that host and device round alike.
    """
    stride = xp.asarray(temporal_stride, xp.float32)
    return xp.floor(xp.asarray(frames).astype(xp.float32) * stride).astype(xp.int32)


def frame_positions(
    start: int | Int[XpArray, ""],
    frames: Int[XpArray, "F"],
    rows: int,
    columns: int,
    temporal_stride: float,
    *,
    xp: ModuleType = np,
) -> Int32[XpArray, "3 F*{rows}*{columns}"]:
    """Ids of video frames.

    Token (row, column) of frame f has temporal id start + int(f * temporal_stride), height id start + row and width
    id start + column. What follows a video starts at the largest id used + 1.

    Args:
        start: first id of the whole video.
        frames: indices of the frames wanted, 0 for the video's first.
        rows, columns: size of a frame in merged patches.
        temporal_stride: ids from one frame to the next, second_per_grid_t * tokens_per_second.
        xp: numpy or jax.numpy.
    """
    temporal = temporal_ids(frames, temporal_stride, xp=xp)
    shape = (len(temporal), rows, columns)
    ids = (temporal[:, None, None], xp.arange(rows)[None, :, None], xp.arange(columns)[None, None, :])
    return (xp.stack([xp.broadcast_to(axis, shape).reshape(-1) for axis in ids]) + start).astype(xp.int32)
