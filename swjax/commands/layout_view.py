"""A layout seen in the order of time: which token comes when, what it is called, and what each query sees."""

import enum
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int8

from swjax.streaming import Design, SpecialTokens, Storage, StreamLayout


class Pair(enum.IntEnum):
    """What a query (first) and a key have to do with each other."""

    UNSEEN = 0
    SOURCE_SEES_SOURCE = 1
    TARGET_SEES_SOURCE = 2
    TARGET_SEES_TARGET = 3
    SOURCE_SEES_TARGET = 4
    PADDING = 5


class Part(enum.IntEnum):
    """The parts of a chat, in the order in which a person lists them."""

    TEXT = 0
    IMAGE = 1
    FRAME = 2
    PREFIX = 3
    WORD = 4
    END = 5


@dataclass(frozen=True)
class PartNumbers:
    """What each slot's token is called, such as frame 2 or word 7.

    Attributes:
        part: `Part` of each slot.
        number: counted from 0 within the part: text and words by token, frames and images whole, the prefixes and
            ends of answers by turn.
    """

    part: Int[np.ndarray, "L"]
    number: Int[np.ndarray, "L"]


def time_order(layout: StreamLayout, design: Design) -> Int[np.ndarray, "L"]:
    """Slots in the order in which their tokens arrive or are spoken.

    Args:
        layout: of one chat, without padding.
        design: its position design; one that does not speak while watching speaks after the video.
    """
    if design.storage is Storage.CHAT:
        return np.argsort(layout.chat_index)
    return np.lexsort((layout.chat_index, layout.is_target, layout.step))


def steps_in_time(layout: StreamLayout, design: Design) -> Int[np.ndarray, "L"]:
    """The number of the frame that has arrived last, in the order of time."""
    order = time_order(layout, design)
    step = layout.step[order]
    if design.speaks_while_watching:
        return step
    return np.maximum.accumulate(np.where(layout.is_target[order], 0, step))


def pairs_seen(layout: StreamLayout, order: Int[np.ndarray, "N"] | None = None) -> Int8[np.ndarray, "N N"]:
    """The `Pair` of each query (row) and key (column).

    Args:
        layout: one chat's, or a packed row.
        order: slots in the order wanted, such as `time_order`; None for slot order.
    """
    slots = np.arange(len(layout)) if order is None else order
    mask = layout.spans.to_mask(len(layout))[np.ix_(slots, slots)]
    is_target, is_padding = layout.is_target[slots], layout.chat_index[slots] < 0
    query, key = is_target[:, None], is_target[None, :]
    pairs = np.select(
        [is_padding[:, None] | is_padding, query & key, query, key],
        [Pair.PADDING, Pair.TARGET_SEES_TARGET, Pair.TARGET_SEES_SOURCE, Pair.SOURCE_SEES_TARGET],
        Pair.SOURCE_SEES_SOURCE,
    )
    return np.where(mask, pairs, Pair.UNSEEN).astype(np.int8)


def number_parts(layout: StreamLayout, special: SpecialTokens) -> PartNumbers:
    """Tell frames, words and the rest apart and number them.

    Args:
        layout: of one chat, without padding.
        special: ids of the tokens that give the chat its structure.
    """
    slots = np.argsort(layout.chat_index)
    ids, is_target, step = layout.token_ids[slots], layout.is_target[slots], layout.step[slots]
    starts = np.flatnonzero(ids == special.im_start)
    message = np.searchsorted(starts, np.arange(len(ids)), side="right") - 1
    place = np.arange(len(ids)) - np.where(message >= 0, starts[np.maximum(message, 0)] if len(starts) else 0, 0)
    ended = np.zeros(len(ids), bool)
    for first, last in zip(starts, [*starts[1:], len(ids)], strict=True):
        ended[first:last] = np.logical_or.accumulate(ids[first:last] == special.im_end)
    part = np.select(
        [
            is_target & (place < len(special.prefix)),
            is_target & ended,
            is_target,
            ids == special.video_pad,
            ids == special.image_pad,
        ],
        [Part.PREFIX, Part.END, Part.WORD, Part.FRAME, Part.IMAGE],
        Part.TEXT,
    )
    number = np.zeros(len(ids), np.int64)
    for one in Part:
        chosen = part == one
        if one is Part.FRAME:
            number[chosen] = np.unique(step[chosen], return_inverse=True)[1]
        elif one in (Part.PREFIX, Part.END):
            number[chosen] = np.unique(message[chosen], return_inverse=True)[1]
        elif one is Part.IMAGE:
            number[chosen] = (np.cumsum(chosen & ~np.roll(chosen, 1)) - 1)[chosen]
        else:
            number[chosen] = np.arange(chosen.sum())
    back = layout.chat_index
    return PartNumbers(part[back], number[back])


def name_part(numbers: PartNumbers, part: Part, chosen: Int[np.ndarray, "N"]) -> str:
    """What some of a part are called, such as "frame 2", "words 3-5" or "prefix".

    Args:
        numbers: of the whole chat.
        part: the part.
        chosen: ascending numbers within it.
    """
    name = part.name.lower()
    if part in (Part.PREFIX, Part.END) and not numbers.number[numbers.part == part].any():
        return name
    plural = len(chosen) > 1 and part is not Part.TEXT
    return f"{name}{('es' if name.endswith('x') else 's') if plural else ''} {_ranges(chosen)}"


def name_seen(numbers: PartNumbers, seen: slice) -> str:
    """What the slots of a span hold, in words, such as "text 0-7, frames 0-1, prefix, words 0-5"."""
    parts, counted = numbers.part[seen], numbers.number[seen]
    phrases = []
    for part in Part:
        found, times = np.unique(counted[parts == part], return_counts=True)
        if not len(found):
            continue
        whole = times == np.bincount(numbers.number[numbers.part == part])[found]
        if whole.any():
            phrases.append(name_part(numbers, part, found[whole]))
        phrases += [f"part of {name_part(numbers, part, one)}" for one in found[~whole, None]]
    return ", ".join(phrases) or "nothing"


def _ranges(numbers: Int[np.ndarray, "N"]) -> str:
    """Ascending numbers in short, such as "0-3, 5"."""
    breaks = np.flatnonzero(np.diff(numbers) > 1) + 1
    return ", ".join(short_range(piece) for piece in np.split(numbers, breaks))


def short_range(numbers: Int[np.ndarray, "N"]) -> str:
    """The least and the greatest of some numbers, such as "3-7", or "3" where they are one."""
    first, last = int(np.min(numbers)), int(np.max(numbers))
    return str(first) if first == last else f"{first}-{last}"
