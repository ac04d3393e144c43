"""Rows into batches: padded one by one, packed several to a row, or sorted into buckets of like size.

A row is a dict of arrays, one example (or several, packed) without padding: the fields of its `StreamLayout` flat,
`span_start` and `span_stop` for its spans, `pixel_values` uint8[P, C] and `video_grid_thw` int32[V, 3]; where tokens of
frames are dropped, `kept` bool[P] says of which patches the tokens are left.
"""

import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt8

from swjax.plain import Json
from swjax.streaming import (
    KeySpans,
    StreamLayout,
    bucket_of,
    concatenate_layouts,
    first_fit_decreasing,
    pad_layout,
)

Row = Json
Batch = dict[str, np.ndarray]
"""Rows of one batch, B rows of L tokens, P patches and V videos:

token_ids int32[B, L], position_ids int32[B, 3, L], span_start and span_stop int32[B, L], labels int32[B, L] (-100: no
loss), pixel_values uint8[B, P, C] (C numbers to a patch), video_grid_thw int32[B, V, 3] (0, 0, 0 for none); where
tokens of frames are dropped, kept bool[B, P].
"""


def make_row(
    layout: StreamLayout,
    patches: UInt8[np.ndarray, "P C"],
    grids: Int[np.ndarray, "V 3"],
    kept: Bool[np.ndarray, "P"] | None = None,
) -> Row:
    """A row of one layout.

    Args:
        layout: where its tokens stand.
        patches: those of its images and videos, one after another.
        grids: their sizes in patches, in chat order.
        kept: which patches' tokens the layout has; None where none are dropped.
    """
    return ({} if kept is None else {"kept": kept}) | {
        "token_ids": layout.token_ids,
        "position_ids": layout.position_ids,
        "span_start": layout.spans.start,
        "span_stop": layout.spans.stop,
        "labels": layout.labels,
        "chat_index": layout.chat_index,
        "step": layout.step,
        "is_target": layout.is_target,
        "pixel_values": patches,
        "video_grid_thw": np.asarray(grids, np.int32).reshape(-1, 3),
    }


def empty_row(patch_dim: int, *, pruned: bool = False) -> Row:
    """A row without tokens, whose patches would have so many numbers, of those of which some are dropped or not."""
    nothing = np.zeros(0, np.int32)
    layout = StreamLayout(
        token_ids=nothing,
        position_ids=np.zeros((3, 0), np.int32),
        spans=KeySpans(nothing, nothing),
        labels=nothing,
        chat_index=nothing,
        step=nothing,
        is_target=np.zeros(0, bool),
    )
    kept = np.zeros(0, bool) if pruned else None
    return make_row(layout, np.zeros((0, patch_dim), np.uint8), np.zeros((0, 3), np.int32), kept)


def pad_rows(rows: Sequence[Row], *, tokens: int, patches: int, videos: int) -> Batch:
    """Stack rows to a batch of fixed shape.

    Args:
        rows: at least one.
        tokens, patches, videos: of each padded row.
    """
    layouts = [pad_layout(_layout_of(row), tokens) for row in rows]
    pixels = np.zeros((len(rows), patches, rows[0]["pixel_values"].shape[1]), np.uint8)
    grids = np.zeros((len(rows), videos, 3), np.int32)
    kept = np.zeros((len(rows), patches), bool)
    for index, row in enumerate(rows):
        if "kept" in row:
            kept[index, : len(row["kept"])] = row["kept"]
        pixels[index, : len(row["pixel_values"])] = row["pixel_values"]
        grids[index, : len(row["video_grid_thw"])] = row["video_grid_thw"]
    return ({"kept": kept} if "kept" in rows[0] else {}) | {
        "token_ids": np.stack([layout.token_ids for layout in layouts]),
        "position_ids": np.stack([layout.position_ids for layout in layouts]),
        "span_start": np.stack([layout.spans.start for layout in layouts]),
        "span_stop": np.stack([layout.spans.stop for layout in layouts]),
        "labels": np.stack([layout.labels for layout in layouts]),
        "pixel_values": pixels,
        "video_grid_thw": grids,
    }


def pack_rows(rows: Sequence[Row], *, tokens: int, patches: int, videos: int, labels: int) -> list[Row]:
    """Pack rows by first-fit-decreasing over all that a row has room for; nothing in a packed row sees another's.

    Args:
        rows: rows of single examples, each small enough for a row of its own.
        tokens, patches, videos, labels: what a packed row has room for.
    """
    sizes = np.array([(*row_size(row), np.count_nonzero(row["labels"] >= 0)) for row in rows])
    bins = first_fit_decreasing(sizes, np.array([tokens, patches, videos, labels]))
    return [_concatenate([rows[number] for number in members]) for members in bins]


def bucket_rows(rows: Sequence[Row], *, batch_size: int, buckets: Sequence[Sequence[int]], videos: int) -> list[Batch]:
    """Batches of rows of like size, each padded to the smallest bucket that has room for all of its rows.

    Rows are sorted by size and cut into batches, so no row is lost or waits for others of its bucket; the batches come
    in an order that looks random but is always the same.

    Args:
        rows: a multiple of `batch_size` of them.
        batch_size: rows of a batch.
        buckets: (tokens, patches) of each bucket, the smallest first.
        videos: videos of a row.
    """
    bounds = np.array(buckets)
    sizes = np.array([row_size(row)[:2] for row in rows])
    order = np.argsort((sizes / bounds[-1]).max(axis=1), kind="stable")
    batches = []
    for members in order.reshape(-1, batch_size):
        tokens, patches = bounds[bucket_of(sizes[members].max(axis=0), bounds)]
        batches.append(pad_rows([rows[number] for number in members], tokens=tokens, patches=patches, videos=videos))
    seed = zlib.crc32(rows[0]["token_ids"].tobytes() + rows[0]["pixel_values"].tobytes())
    return [batches[number] for number in np.random.default_rng(seed).permutation(len(batches))]


def row_size(row: Row) -> tuple[int, int, int]:
    """Tokens, patches and videos of a row."""
    return len(row["token_ids"]), len(row["pixel_values"]), len(row["video_grid_thw"])


def _layout_of(row: Row) -> StreamLayout:
    names = ("token_ids", "position_ids", "labels", "chat_index", "step", "is_target")
    return StreamLayout(**{name: row[name] for name in names}, spans=KeySpans(row["span_start"], row["span_stop"]))


def _concatenate(rows: Sequence[Row]) -> Row:
    return make_row(
        concatenate_layouts([_layout_of(row) for row in rows]),
        np.concatenate([row["pixel_values"] for row in rows]),
        np.concatenate([row["video_grid_thw"] for row in rows]),
        np.concatenate([row["kept"] for row in rows]) if "kept" in rows[0] else None,
    )
