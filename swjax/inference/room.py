"""Room in the rows of a cache: by how many slots an end that runs over is made longer."""

from swjax.inference.memory import bounds_of
from swjax.inference.settings import StreamSettings

LOOK_AHEAD = 4 / 3
"""How much further than now a stream is looked at: larger rows are compiled while a quarter of an end is free."""


def slots_to_add(left: int, right: int, lowest: int, highest: int, spare: int) -> tuple[int, int] | None:
    """Slots to add at both ends: an end that would run over is doubled, as far as the limit allows.

    Args:
        left, right: slots on either side of the origin.
        lowest: first slot that is needed, counted from the origin: negative on its left.
        highest: last slot that is needed, and one.
        spare: slots that may be added.

    Returns:
        Those to the left and to the right; None if what is needed is more than may be added.
    """
    need_left, need_right = max(0, -lowest - left), max(0, highest - right)
    if need_left + need_right > spare:
        return None
    add_left = min(max(need_left, left), spare - need_right) if need_left else 0
    return add_left, min(max(need_right, right), spare - add_left) if need_right else 0


def padded_size(count: int) -> int:
    """Sizes in which keys and values are moved: powers of two, so that few are compiled."""
    return max(4, 1 << (count - 1).bit_length())


BESIDE_WORDS = 9
"""Slots for the assistant prefix, for what ends an answer and begins another, and for the word before a compaction."""


def bounded_room(settings: StreamSettings, frame_units: int, chunk: int, prompt: int) -> tuple[int, int] | None:
    """Slots that a stream with a bounded memory will ever need, to the left and to the right of its origin.

    For sources the budget, a frame or question, and a chunk; for words the budget and those of one step. Where both are
    stored in order of arrival, all of them are to the right.

    Args:
        settings: the stream's.
        frame_units: tokens of the largest frame.
        chunk: tokens of the largest pass.
        prompt: tokens of the prompt.

    Returns:
        Both; None if the memory has no bound.
    """
    bounds = bounds_of(settings.memory, frame_units, prompt)
    if bounds is None:
        return None
    sources = bounds.sources + padded_size(frame_units) + chunk
    words = bounds.words + settings.step + BESIDE_WORDS
    return (words, sources) if settings.design.grouped else (0, sources + words)
