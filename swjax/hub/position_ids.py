"""Position ids of a plain chat about videos, by Qwen2.5-VL's rule."""

from collections.abc import Iterable, Sequence

import numpy as np


def chat_position_ids(
    token_ids: Sequence[int] | np.ndarray,
    grids: Iterable[Sequence[int] | np.ndarray],
    *,
    pads: Sequence[int],
    seconds: float = 1.0,
    tokens_per_second: float = 2,
    merge: int = 2,
) -> np.ndarray:
    """Temporal, height and width ids of each token of a chat in Qwen2.5-VL's order, int64[3, L].

    Args:
        token_ids: of one chat.
        grids: (frames, rows, columns) in patches of each image and video, in order.
        pads: ids of <|image_pad|> and <|video_pad|>.
        seconds: from one frame of a grid to the next.
        tokens_per_second: temporal ids to a second, of config.json.
        merge: patches on a side of a token, `spatial_merge_size` of config.json.

    Raises:
        ValueError: the chat has tokens of more images and videos than there are grids.
    """
    ids = np.asarray(token_ids)
    positions = np.empty((3, len(ids)), np.int64)
    slot = start = 0
    left = iter(grids)
    while slot < len(ids):
        if ids[slot] in pads:
            grid = next(left, None)
            if grid is None:
                raise ValueError(f"token {slot} is of an image or video, and no grid is left for it")
            frames, rows, columns = (int(size) for size in grid)
            cells = np.indices((frames, rows // merge, columns // merge)).reshape(3, -1)
            cells[0] = cells[0].astype(np.float32) * np.float32(seconds * tokens_per_second)  # rounded down
        else:
            cells = np.zeros((3, 1), np.int64)
        positions[:, slot : slot + cells.shape[1]] = start + cells
        slot, start = slot + cells.shape[1], start + cells.max() + 1
    return positions
