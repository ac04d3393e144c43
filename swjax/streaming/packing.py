"""Several layouts in one row without leakage, and rows of like length together: two ways of wasting less padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32

from swjax.streaming.layout import StreamLayout, pad_layout
from swjax.streaming.spans import KeySpans


@dataclass(frozen=True)
class PackedLayouts:
    """Layouts packed into rows of one length.

    Attributes:
        rows: the rows. Each layout stands whole and unchanged in one of them, its spans moved along with it.
        members: for each row, the numbers of the layouts in it, in slot order. Their images and videos follow one
            another in this order too.
        lengths: int32[layouts], tokens of each layout.
    """

    rows: tuple[StreamLayout, ...]
    members: tuple[tuple[int, ...], ...]
    lengths: Int32[np.ndarray, "layouts"]

    @property
    def real_share(self) -> float:
        """Share of the rows' tokens that are no padding, 0 to 1."""
        slots = sum(len(row) for row in self.rows)
        return int(self.lengths.sum()) / slots if slots else 0.0


def pack_layouts(layouts: Sequence[StreamLayout], length: int) -> PackedLayouts:
    """Pack layouts into as few rows of `length` tokens as first-fit-decreasing finds.

    Every token goes on seeing exactly what it saw in its own layout, so logits and losses do not change. The same
    layouts give the same rows.

    Raises:
        ValueError: if a layout is longer than a row.
    """
    lengths = np.array([len(layout) for layout in layouts], np.int32)
    bins = first_fit_decreasing(lengths[:, None], np.array([length]))
    rows = tuple(pad_layout(concatenate_layouts([layouts[number] for number in members]), length) for members in bins)
    return PackedLayouts(rows, bins, lengths)


def unpack_layouts(packed: PackedLayouts) -> tuple[StreamLayout, ...]:
    """The layouts that were packed, in their first order."""
    layouts = {}
    for row, members in zip(packed.rows, packed.members, strict=True):
        start = 0
        for number in members:
            stop = start + int(packed.lengths[number])
            layouts[number] = _cut(row, start, stop)
            start = stop
    return tuple(layouts[number] for number in range(len(packed.lengths)))


def concatenate_layouts(layouts: Sequence[StreamLayout]) -> StreamLayout:
    """One row of several layouts that do not see one another."""
    offsets = np.cumsum([0] + [len(layout) for layout in layouts[:-1]])
    pairs = list(zip(layouts, offsets.astype(np.int32), strict=True))
    return StreamLayout(
        token_ids=np.concatenate([layout.token_ids for layout in layouts]),
        position_ids=np.concatenate([layout.position_ids for layout in layouts], axis=1),
        spans=KeySpans(
            np.concatenate([layout.spans.start + offset for layout, offset in pairs]),
            np.concatenate([layout.spans.stop + offset for layout, offset in pairs]),
        ),
        labels=np.concatenate([layout.labels for layout in layouts]),
        chat_index=np.concatenate([layout.chat_index for layout in layouts]),
        step=np.concatenate([layout.step for layout in layouts]),
        is_target=np.concatenate([layout.is_target for layout in layouts]),
    )


def first_fit_decreasing(
    sizes: Int[np.ndarray, "items dimensions"], capacity: Int[np.ndarray, "dimensions"]
) -> tuple[tuple[int, ...], ...]:
    """Put items into bins: the largest first, each into the first bin that has room for it.

    Args:
        sizes: what each item takes up, in one or several dimensions (tokens, patches, ...). Items are sorted by the
            largest share of the capacity that they take in any dimension; equal ones keep their order.
        capacity: what a bin holds in each.

    Returns:
        The items' numbers in each bin.

    Raises:
        ValueError: if an item does not fit into an empty bin.
    """
    items = np.asarray(sizes, np.int64).reshape(-1, len(capacity))
    too_large = (items > capacity).any(axis=1)
    if too_large.any():
        item = int(too_large.argmax())
        raise ValueError(
            f"item {item} of size {items[item].tolist()} is larger than a row of {np.asarray(capacity).tolist()}, by "
            f"{np.maximum(items[item] - capacity, 0).tolist()}"
        )
    room = np.zeros((len(items), len(capacity)), np.int64) + capacity
    bins: list[list[int]] = []
    for item in np.argsort(-(items / np.asarray(capacity)).max(axis=1, initial=0), kind="stable"):
        chosen = int((room[: len(bins) + 1] >= items[item]).all(axis=1).argmax())
        if chosen == len(bins):
            bins.append([])
        bins[chosen].append(int(item))
        room[chosen] -= items[item]
    return tuple(map(tuple, bins))


def bucket_of(sizes: Int[np.ndarray, "dimensions"], buckets: Int[np.ndarray, "buckets dimensions"]) -> int:
    """The first of the buckets that has room for something of these sizes; buckets are sorted, the smallest first.

    Raises:
        ValueError: if none has.
    """
    bounds = np.asarray(buckets).reshape(-1, np.size(sizes))
    fits = (bounds >= sizes).all(axis=1)
    if not fits.any():
        raise ValueError(f"nothing of size {np.asarray(sizes).tolist()} fits a bucket; the largest is {bounds[-1]}")
    return int(fits.argmax())


def _cut(row: StreamLayout, start: int, stop: int) -> StreamLayout:
    piece = slice(start, stop)
    return StreamLayout(
        token_ids=row.token_ids[piece],
        position_ids=row.position_ids[:, piece],
        spans=KeySpans(row.spans.start[piece] - np.int32(start), row.spans.stop[piece] - np.int32(start)),
        labels=row.labels[piece],
        chat_index=row.chat_index[piece],
        step=row.step[piece],
        is_target=row.is_target[piece],
    )
