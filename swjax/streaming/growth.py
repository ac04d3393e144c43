"""The layout of a stream that is still growing: the ids and slots of the next tokens, and what they see.

`build_layout` arranges a whole chat at once; these functions go through the same events one by one, as they happen:
text, frame, words, frame, words. Slots count from the origin at which the first source is stored; in grouped designs
targets have slots below it. All counts are plain integers, or traced ones inside jit (with `xp=jax.numpy`).
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from swjax.streaming.positions import frame_positions, text_positions
from swjax.streaming.spans import KeySpans
from swjax.streaming.variants import Counting, Design

Integer = Any
"""An int, or an int32 scalar of numpy or jax."""


class PositionCounts(NamedTuple):
    """Where the position ids of a stream stand.

    Attributes:
        next_source: id of the next source.
        next_target: id of the next target, where targets are counted apart.
        video_start: first id of the current video.
        ahead: whether sources have come that no target has followed yet (OSPE).
    """

    next_source: Integer
    next_target: Integer
    video_start: Integer
    ahead: Any


class StoredCounts(NamedTuple):
    """How many sources and targets have been stored."""

    sources: Integer
    targets: Integer


def first_positions(design: Design, gap: Integer) -> PositionCounts:
    """The counts before the first token.

    Args:
        design: the position design.
        gap: first id of the answer in GIPE.
    """
    return PositionCounts(0, design.first_target(gap), 0, False)


def place_text(design: Design, counts: PositionCounts, length: int, *, xp: Any = np) -> tuple[PositionCounts, Any]:
    """Ids of `length` text tokens among the sources.

    Returns:
        The counts after them, and int32[3, length].
    """
    positions = text_positions(counts.next_source, length, xp=xp)
    return counts._replace(next_source=counts.next_source + length, ahead=True), positions


def place_frame(
    design: Design,
    counts: PositionCounts,
    frame: Integer,
    rows: int,
    columns: int,
    temporal_stride: float,
    *,
    xp: Any = np,
) -> tuple[PositionCounts, Int32[Any, "3 rows*columns"]]:
    """Ids of the next frame of a video.

    Args:
        design: the position design.
        counts: where the ids stand.
        frame: the frame's number in its video; 0 begins a new one.
        rows, columns: size of the frame in merged patches.
        temporal_stride: ids from one frame to the next.
        xp: numpy or jax.numpy.

    Returns:
        The counts after it, and int32[3, rows * columns].
    """
    if design.counting is Counting.OVERLAPPED:
        counts = _catch_up(counts, xp)
    if design.frame_by_frame:
        return place_image(design, counts, rows, columns, xp=xp)
    start = xp.where(frame == 0, counts.next_source, counts.video_start)
    number = xp.asarray(frame, xp.int32).reshape(1)
    positions = frame_positions(start, number, rows, columns, temporal_stride, xp=xp)
    behind = xp.maximum(counts.next_source, positions.max() + 1)
    return counts._replace(next_source=behind, video_start=start, ahead=True), positions


def place_image(
    design: Design, counts: PositionCounts, rows: int, columns: int, *, xp: Any = np
) -> tuple[PositionCounts, Int32[Any, "3 rows*columns"]]:
    """Ids of an image of `rows` x `columns` merged patches.

    Returns:
        The counts after it, and int32[3, rows * columns].
    """
    positions = frame_positions(counts.next_source, xp.zeros(1, xp.int32), rows, columns, 1.0, xp=xp)
    return counts._replace(next_source=counts.next_source + max(rows, columns), ahead=True), positions


def place_words(
    design: Design, counts: PositionCounts, length: int, *, xp: Any = np
) -> tuple[PositionCounts, Int32[Any, "3 length"]]:
    """Ids of `length` targets: the assistant prefix, and then each word when it is spoken.

    Returns:
        The counts after them, and int32[3, length].
    """
    if design.counting is Counting.ONE:
        return place_text(design, counts, length, xp=xp)
    if design.counting is Counting.OVERLAPPED:
        counts = _catch_up(counts, xp)
    positions = text_positions(counts.next_target, length, xp=xp)
    return counts._replace(next_target=counts.next_target + length), positions


def begin_turn(design: Design, counts: PositionCounts, *, xp: Any = np) -> PositionCounts:
    """The counts at the question of a later turn; call it once the answer before has ended."""
    if design.counting is Counting.OVERLAPPED:
        return counts._replace(next_source=xp.maximum(counts.next_source, counts.next_target))
    return counts


def _catch_up(counts: PositionCounts, xp: Any) -> PositionCounts:
    """OSPE: what comes after a frame starts behind all ids so far, be it words or the next frame."""
    behind = xp.maximum(counts.next_source, counts.next_target)
    return counts._replace(
        next_source=xp.where(counts.ahead, behind, counts.next_source),
        next_target=xp.where(counts.ahead, behind, counts.next_target),
        ahead=False,
    )


def store_sources(
    design: Design, stored: StoredCounts, length: int, *, xp: Any = np
) -> tuple[StoredCounts, Int32[Any, "length"], KeySpans]:
    """Slots of the next sources and what they see, counted from the origin."""
    first = stored.sources if design.grouped else stored.sources + stored.targets
    slots = first + xp.arange(length, dtype=xp.int32)
    return stored._replace(sources=stored.sources + length), slots, KeySpans(xp.zeros_like(slots), slots + 1)


def store_targets(
    design: Design, stored: StoredCounts, length: int, *, xp: Any = np
) -> tuple[StoredCounts, Int32[Any, "length"], KeySpans]:
    """Slots of the next targets and what they see, counted from the origin; in grouped designs to the left of it.

    A target is stored when its successor is wanted, and not before: what it sees is what has arrived by then.
    """
    number = xp.arange(1, length + 1, dtype=xp.int32)
    if design.grouped:
        slots = -(stored.targets + number)
        spans = KeySpans(slots, xp.full(length, stored.sources, xp.int32))
    else:
        slots = stored.sources + stored.targets + number - 1
        spans = KeySpans(xp.zeros_like(slots), slots + 1)
    return stored._replace(targets=stored.targets + length), slots, spans
