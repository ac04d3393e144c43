"""The one place where a chat becomes slots, positions, spans and labels, for every design, on host and device alike.

Like `swjax.streaming.chat` it takes the array namespace, works on fixed shapes and checks nothing.
"""

from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from swjax.streaming.chat import ChatTokens, Ints, VisualCells, read_chat_tokens, read_visual_cells
from swjax.streaming.spans import KeySpans
from swjax.streaming.tokens import SpecialTokens
from swjax.streaming.variants import Counting, Design, Storage

NO_LABEL = -100


def arrange(
    xp: Any,
    input_ids: Ints,
    num_tokens: Int[Any, ""] | int,
    grid_thw: Int[Any, "items 3"],
    counts: Int[Any, "F"],
    temporal_stride: Shaped[Any, "items"],
    *,
    design: Design,
    gap: Int[Any, ""] | int,
    special: SpecialTokens,
) -> dict[str, Any]:
    """Arrange a chat.

    Args:
        xp: numpy or jax.numpy.
        input_ids: int[L] in chat order; tokens from `num_tokens` on are padding.
        num_tokens: length of the chat.
        grid_thw: images and videos in chat order, at least one row; (0, 0, 0) is none.
        counts: answer tokens after each frame of the chat.
        temporal_stride: ids from one frame to the next, of each image or video.
        design: the position design.
        gap: first id of the answer in GIPE.
        special: the ids of the tokens that give the chat its structure.

    Returns:
        The fields of a `StreamLayout` by name.
    """
    index = xp.arange(len(input_ids))
    is_real = index < num_tokens
    cells = read_visual_cells(xp, input_ids, is_real, grid_thw, temporal_stride, special)
    tokens = read_chat_tokens(xp, input_ids, is_real, cells.frames_begun, counts, special)
    slot_to_chat, spans = _store(xp, tokens, design.storage)

    advance = _advance(xp, cells, is_real, frame_by_frame=design.frame_by_frame)
    if design.counting is Counting.ONE:
        base = _count(xp, advance[slot_to_chat])
    elif design.counting is Counting.TWO:
        base = _decoupled(xp, tokens, advance, design.first_target(gap))[slot_to_chat]
    else:
        base = _overlapped(xp, tokens, advance)[slot_to_chat]
    temporal = xp.zeros_like(cells.temporal) if design.frame_by_frame else cells.temporal
    within = xp.stack([temporal, cells.row, cells.column]) * cells.is_visual
    position_ids = xp.where(is_real[slot_to_chat], base + within[:, slot_to_chat], 0)

    predicted = xp.where(tokens.is_labelled, input_ids, NO_LABEL)
    labels = _next(xp, predicted)[slot_to_chat] if design.grouped else _next(xp, predicted[slot_to_chat])
    real = is_real[slot_to_chat]
    fields = {
        "token_ids": xp.where(real, input_ids[slot_to_chat], 0),
        "position_ids": position_ids,
        "labels": xp.where(real, labels, NO_LABEL),
        "chat_index": xp.where(real, slot_to_chat, -1),
        "step": xp.where(real, tokens.step[slot_to_chat], -1),
    }
    return {name: array.astype(xp.int32) for name, array in fields.items()} | {
        "spans": KeySpans(*(edge.astype(xp.int32) for edge in spans)),
        "is_target": tokens.is_target[slot_to_chat],
    }


def _store(xp: Any, tokens: ChatTokens, storage: Storage) -> tuple[Ints, KeySpans]:
    """The permutation from slot to index in the chat, and the span of each slot; padding stays behind, on its own."""
    index = xp.arange(len(tokens.is_real))
    if storage is not Storage.GROUPED:
        order = index
        if storage is Storage.ARRIVAL:
            arrival = xp.where(tokens.is_real, 2 * tokens.step + tokens.is_target, 2 * len(index))
            order = xp.argsort(arrival, stable=True)
        return order, KeySpans(xp.where(tokens.is_real, 0, index), index + 1)

    is_source = tokens.is_real & ~tokens.is_target
    num_targets = tokens.is_target.sum()
    targets_before, sources_before = _count(xp, tokens.is_target), _count(xp, is_source)
    slot = xp.where(tokens.is_target, num_targets - 1 - targets_before, num_targets + sources_before)
    slot = xp.where(tokens.is_real, slot, index)
    order = xp.argsort(slot)
    stop = num_targets + xp.where(tokens.is_target, tokens.seen_sources, sources_before + 1)
    start = xp.where(tokens.is_target, slot, num_targets)
    start, stop = xp.where(tokens.is_real, start, index), xp.where(tokens.is_real, stop, index + 1)
    return order, KeySpans(start[order], stop[order])


def _advance(xp: Any, cells: VisualCells, is_real: Any, *, frame_by_frame: bool) -> Ints:
    """How far each token moves the count: text by one, an image or video by its largest id plus one, at its end."""
    ends, extent = (cells.ends_frame, cells.frame_extent) if frame_by_frame else (cells.ends_item, cells.item_extent)
    return xp.where(cells.is_visual, ends * extent, 1) * is_real


def _count(xp: Any, advance: Ints) -> Ints:
    """The count at each token: what all tokens before it have moved it by."""
    return xp.cumsum(advance) - advance


def _decoupled(xp: Any, tokens: ChatTokens, advance: Ints, first_target: Int[Any, ""] | int) -> Ints:
    """GDPE and GIPE: sources and targets are counted apart."""
    sources = _count(xp, xp.where(tokens.is_target, 0, advance))
    return xp.where(tokens.is_target, first_target + _count(xp, tokens.is_target), sources)


def _overlapped(xp: Any, tokens: ChatTokens, advance: Ints) -> Ints:
    """OSPE: frame i + 1 and the words spoken meanwhile both start where frame i and the words before it have ended.

    With V_i and A_i the extents of frame i and of the words spoken after it, and E_i the id at which those words
    start, E_i = E_{i-1} + max(V_i, A_{i-1}); the first frame of a later turn waits for the last words instead, so
    there the two add up.
    """
    from_sources, from_targets = xp.where(tokens.is_target, 0, advance), xp.where(tokens.is_target, advance, 0)
    extent_of_sources, extent_of_targets = (
        _sum_by_step(xp, values, tokens.step) for values in (from_sources, from_targets)
    )
    opens = _sum_by_step(xp, tokens.opens_turn & tokens.is_real & ~tokens.is_target, tokens.step) > 0
    words_before = xp.concatenate([xp.zeros(1, extent_of_targets.dtype), extent_of_targets[:-1]])
    grown = xp.where(opens, extent_of_sources + words_before, xp.maximum(extent_of_sources, words_before))
    targets_start = xp.cumsum(grown)
    sources_start = targets_start - grown + xp.where(opens, words_before, 0)
    source_base = sources_start - _count(xp, extent_of_sources)
    target_base = targets_start - _count(xp, extent_of_targets)
    return xp.where(
        tokens.is_target,
        target_base[tokens.step] + _count(xp, from_targets),
        source_base[tokens.step] + _count(xp, from_sources),
    )


def _sum_by_step(xp: Any, values: Ints, step: Ints) -> Ints:
    """Sums of the values of each step, with room for as many steps as tokens."""
    if xp is np:
        return np.bincount(step, values, len(step)).astype(np.int64)
    return xp.zeros(len(step), int).at[step].add(values)


def _next(xp: Any, values: Ints) -> Ints:
    """The value of the token after each."""
    return xp.concatenate([values[1:], xp.full(min(1, len(values)), NO_LABEL, values.dtype)])
