"""Tokens of frames that are dropped before training, by the rules of streams (`swjax.streaming.dropping`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from swjax.streaming import Geometry
from swjax.streaming.dropping import Drop
from swjax.streaming.dropping.view import PIXELS, FrameView, needs_of, token_pixels


def kept_tokens(
    drop: Drop,
    patches: UInt8[np.ndarray, "P C"],
    grid: Sequence[int],
    geometry: Geometry,
    *,
    keep_last: bool,
) -> Bool[np.ndarray, "U"]:
    """Which tokens of a video stay, frame by frame, as in a stream of it.

    Args:
        drop: a rule that needs no features.
        patches: of the video, in the processor's order.
        grid: its frames, patch rows and patch columns.
        geometry: sizes of the patches.
        keep_last: a frame of which nothing would stay keeps its last token (designs in order of arrival).
    """
    frames, units = grid[0], grid[1] * grid[2] // geometry.token_patches
    nothing = np.zeros((units, 1), np.float32)
    kept = np.zeros((frames, units), bool)
    first: np.ndarray | None = None
    make_view: Any = FrameView  # its arrays may be numpy's
    for number, of_frame in enumerate(np.split(patches, frames)):
        before, last = first, None
        if PIXELS in needs_of(drop):
            first, last = token_pixels(of_frame, geometry)
        view = make_view(
            features=nothing,
            units=np.array(units, np.int32),
            columns=np.array(grid[2] // geometry.merge_size, np.int32),
            number=np.array(number, np.int32),
            previous=nothing,
            has_previous=np.array(number > 0),
            mean=np.zeros(1, np.float32),
            pixels=last,
            previous_pixels=last if before is None else before,
        )
        kept[number] = np.asarray(drop.keep(view))
        if keep_last and not kept[number].any():
            kept[number, -1] = True
    return kept.reshape(-1)
