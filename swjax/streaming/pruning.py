"""Layouts without some of their slots: what a model is trained on where tokens of frames are dropped."""

import numpy as np
from jaxtyping import Bool

from swjax.streaming.arrange import NO_LABEL
from swjax.streaming.layout import StreamLayout
from swjax.streaming.spans import KeySpans


def prune_layout(layout: StreamLayout, keep: Bool[np.ndarray, "L"]) -> StreamLayout:
    """A layout without some of its slots; the others keep their ids, and every query sees what stays of its span.

    What a dropped token predicts (in `interleave` the next word), the token that is stored before it predicts in its
    place, as in a stream.

    Args:
        layout: of whole frames.
        keep: which slots stay.

    Raises:
        ValueError: if a token before a dropped one has a label of its own, or there is none.
    """
    before = np.concatenate([[0], np.cumsum(keep)]).astype(np.int32)
    labels = layout.labels.copy()
    moved = np.flatnonzero(~keep & (labels != NO_LABEL))
    to = np.maximum.accumulate(np.where(keep, np.arange(len(keep)), -1))[moved]
    if (to < 0).any() or (labels[to] != NO_LABEL).any() or len(np.unique(to)) < len(to):
        raise ValueError("a dropped token predicts something, and none is left before it that could")
    labels[to] = labels[moved]
    return StreamLayout(
        token_ids=layout.token_ids[keep],
        position_ids=layout.position_ids[:, keep],
        spans=KeySpans(before[layout.spans.start[keep]], before[layout.spans.stop[keep]]),
        labels=labels[keep],
        chat_index=layout.chat_index[keep],
        step=layout.step[keep],
        is_target=layout.is_target[keep],
    )
