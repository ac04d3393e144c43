"""M-RoPE position ids (temporal, height, width) of pieces of a sequence, by Qwen2.5-VL's own rule."""

import numpy as np
from jaxtyping import Int32


def text_positions(start: int, length: int) -> Int32[np.ndarray, "3 N"]:
    """Ids of text: all three rows count on together from `start`."""
    return np.broadcast_to(np.arange(start, start + length, dtype=np.int32), (3, length))


def frame_positions(
    start: int, frames: Int32[np.ndarray, "F"], rows: int, columns: int, temporal_stride: float
) -> Int32[np.ndarray, "3 F*rows*columns"]:
    """Ids of video frames.

    Token (row, column) of frame f has temporal id start + int(f * temporal_stride), height id start + row and width
    id start + column. What follows a video starts at the largest id used + 1.

    Args:
        start: first id of the whole video.
        frames: indices of the frames wanted, 0 for the video's first.
        rows, columns: size of a frame in merged patches.
        temporal_stride: ids from one frame to the next, second_per_grid_t * tokens_per_second.
    """
    temporal = np.floor(np.asarray(frames, np.float64) * temporal_stride).astype(np.int32)
    shape = (len(temporal), rows, columns)
    ids = (temporal[:, None, None], np.arange(rows)[None, :, None], np.arange(columns)[None, None, :])
    return np.stack([np.broadcast_to(axis, shape).reshape(-1) for axis in ids]).astype(np.int32) + np.int32(start)
