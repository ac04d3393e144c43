"""The layout of a stream that is still growing: the ids and slots of the next tokens, and what they see.

`build_layout` arranges a whole chat at once; these functions go through the same events one by one, as they happen:
text, frame, words, frame, words. Slots count from the origin at which the first source is stored; in grouped designs
targets have slots below it. All counts are plain integers, or traced ones inside jit (with `xp=jax.numpy`).
"""

from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from swjax.streaming.arrays import Flag, Integer, XpArray
from swjax.streaming.counting import StepEnds
from swjax.streaming.positions import frame_positions, text_positions
from swjax.streaming.spans import KeySpans
from swjax.streaming.variants import Design


class PositionCounts(NamedTuple):
    """Where the position ids of a stream stand, in the step that is under way.

    Attributes:
        before: where the step before it has ended.
        next_source: id of the next source of the step.
        words: targets of the step so far.
        has_sources: whether the step has any source.
        has_item: whether the step has a frame of a video, or text that has arrived between frames.
        video_start: first id of the current video.
    """

    before: StepEnds
    next_source: Integer
    words: Integer
    has_sources: Flag
    has_item: Flag
    video_start: Integer


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
    first_target = design.first_target(gap)
    before = StepEnds(words=first_target, source=0, target=first_target)
    return PositionCounts(before, design.counting.first_source(before, True, np), 0, False, False, 0)


def place_text(
    design: Design, counts: PositionCounts, length: int, *, is_item: bool = False, xp: ModuleType = np
) -> tuple[PositionCounts, Int32[XpArray, "3 {length}"]]:
    """Ids of `length` text tokens among the sources.

    Args:
        design: the position design.
        counts: where the ids stand.
        length: number of tokens.
        is_item: whether it arrives between frames, like a question, and words may be spoken after it; else it belongs
            to the frame beside it, like the prompt and what closes the video. The next frame begins a new piece of
            video: it is number 0.
        xp: numpy or jax.numpy.

    Returns:
        The counts after them, and int32[3, length].
    """
    follows_item = is_item & design.speaks_while_watching & counts.has_item
    counts = _next_step(design, counts, follows_item | (counts.words > 0), False, xp)
    positions = text_positions(counts.next_source, length, xp=xp)
    behind = counts.next_source + length
    return counts._replace(next_source=behind, has_sources=True, has_item=counts.has_item | is_item), positions


def place_frame(
    design: Design,
    counts: PositionCounts,
    frame: Integer,
    rows: int,
    columns: int,
    temporal_stride: float,
    *,
    xp: ModuleType = np,
) -> tuple[PositionCounts, Int32[XpArray, "3 {rows}*{columns}"]]:
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
    follows_item = design.speaks_while_watching & counts.has_item
    counts = _next_step(design, counts, follows_item | (counts.words > 0), False, xp)
    if design.frame_by_frame:
        counts, positions = place_image(design, counts, rows, columns, xp=xp)
        return counts._replace(has_item=True), positions
    start = xp.where(frame == 0, counts.next_source, counts.video_start)
    number = xp.asarray(frame, xp.int32).reshape(1)
    positions = frame_positions(start, number, rows, columns, temporal_stride, xp=xp)
    behind = xp.maximum(counts.next_source, positions.max() + 1)
    return counts._replace(next_source=behind, has_sources=True, has_item=True, video_start=start), positions


def place_image(
    design: Design, counts: PositionCounts, rows: int, columns: int, *, xp: ModuleType = np
) -> tuple[PositionCounts, Int32[XpArray, "3 {rows}*{columns}"]]:
    """Ids of an image.

    Args:
        design: the position design.
        counts: where the ids stand.
        rows, columns: size of the image in merged patches.
        xp: numpy or jax.numpy.

    Returns:
        The counts after it, and int32[3, rows * columns].
    """
    counts = _next_step(design, counts, counts.words > 0, False, xp)
    positions = frame_positions(counts.next_source, xp.zeros(1, xp.int32), rows, columns, 1.0, xp=xp)
    return counts._replace(next_source=counts.next_source + max(rows, columns), has_sources=True), positions


def place_words(
    design: Design, counts: PositionCounts, length: int, *, xp: ModuleType = np
) -> tuple[PositionCounts, Int32[XpArray, "3 {length}"]]:
    """Ids of `length` targets: the assistant prefix, and then each word when it is spoken.

    Args:
        design: the position design.
        counts: where the ids stand.
        length: number of tokens.
        xp: numpy or jax.numpy.

    Returns:
        The counts after them, and int32[3, length].
    """
    positions = text_positions(_ended(design, counts, xp).target, length, xp=xp)
    return counts._replace(words=counts.words + length), positions


def begin_turn(design: Design, counts: PositionCounts, *, xp: ModuleType = np) -> PositionCounts:
    """The counts at the question of a turn; call it once the answer before has ended.

    Args:
        design: the position design.
        counts: where the ids stand.
        xp: numpy or jax.numpy.
    """
    return _next_step(design, counts, counts.has_sources | (counts.words > 0), True, xp)


def reveal(design: Design, spoken: PositionCounts, ahead: PositionCounts, *, xp: ModuleType = np) -> PositionCounts:
    """The counts for words that follow sources which were laid out while earlier words were spoken.

    Args:
        design: a grouped design: sources' ids do not wait for the words before them.
        spoken: the counts that words were placed by meanwhile.
        ahead: the counts that the sources were placed by, begun as a copy of `spoken`.
        xp: numpy or jax.numpy.
    """
    behind = xp.where(spoken.words > 0, _ended(design, spoken, xp).target, spoken.before.target)
    return ahead._replace(before=ahead.before._replace(target=xp.maximum(ahead.before.target, behind)))


def _ended(design: Design, counts: PositionCounts, xp: ModuleType) -> StepEnds:
    """Where the step under way ends, if nothing more comes."""
    return design.counting.end(counts.before, counts.next_source, counts.words, xp)


def _next_step(design: Design, counts: PositionCounts, if_: Flag, opens_turn: bool, xp: ModuleType) -> PositionCounts:
    """Begins another step if a condition holds."""
    before = _ended(design, counts, xp)
    source = design.counting.first_source(before, opens_turn, xp)
    begun = PositionCounts(before, source, 0, False, False, counts.video_start)
    if xp is np:
        return begun if if_ else counts
    both = zip((*begun.before, *begun[1:]), (*counts.before, *counts[1:]), strict=True)
    chosen = [xp.where(if_, new, old) for new, old in both]
    return PositionCounts(StepEnds(*chosen[:3]), *chosen[3:])


def store_sources(
    design: Design, stored: StoredCounts, length: int, *, xp: ModuleType = np
) -> tuple[StoredCounts, Int32[XpArray, "{length}"], KeySpans]:
    """Slots of the next sources and what they see, counted from the origin.

    Args:
        design: the position design.
        stored: what has been stored before.
        length: number of tokens.
        xp: numpy or jax.numpy.

    Returns:
        The counts after them, their slots, and the span of slots that each sees.
    """
    first = stored.sources if design.grouped else stored.sources + stored.targets
    slots = first + xp.arange(length, dtype=xp.int32)
    return stored._replace(sources=stored.sources + length), slots, KeySpans(xp.zeros_like(slots), slots + 1)


def store_targets(
    design: Design, stored: StoredCounts, length: int, *, xp: ModuleType = np
) -> tuple[StoredCounts, Int32[XpArray, "{length}"], KeySpans]:
    """Slots of the next targets and what they see, counted from the origin; in grouped designs to the left of it.

    A target is stored when its successor is wanted, and not before: what it sees is what has arrived by then.

    Args:
        design: the position design.
        stored: what has been stored before. In grouped designs `sources` may be fewer: those that the targets see.
        length: number of tokens.
        xp: numpy or jax.numpy.

    Returns:
        The counts after them, with `sources` as given, their slots, and the span of slots that each sees.
    """
    number = xp.arange(1, length + 1, dtype=xp.int32)
    if design.grouped:
        slots = -(stored.targets + number)
        spans = KeySpans(slots, xp.full(length, stored.sources, xp.int32))
    else:
        slots = stored.sources + stored.targets + number - 1
        spans = KeySpans(xp.zeros_like(slots), slots + 1)
    return stored._replace(targets=stored.targets + length), slots, spans
