"""The one place where a chat becomes slots, positions, spans and labels, for every design, on host and device alike.

Like `swjax.streaming.chat` it takes the array namespace, works on fixed shapes and checks nothing.
"""

from types import ModuleType
from typing import Any, assert_never

import numpy as np
from jaxtyping import Int, Shaped

from swjax.streaming.arrays import Bools, Flag, Integer, Ints, XpArray
from swjax.streaming.chat import (
    ChatTokens,
    VisualCells,
    read_chat_tokens,
    read_visual_cells,
)
from swjax.streaming.counting import Counting, StepEnds
from swjax.streaming.spans import KeySpans
from swjax.streaming.tokens import SpecialTokens
from swjax.streaming.variants import Design, Storage

NO_LABEL = -100


def arrange(
    xp: ModuleType,
    input_ids: Ints,
    num_tokens: Int[XpArray, ""] | int,
    grid_thw: Int[XpArray, "items 3"],
    counts: Int[XpArray, "F"],
    temporal_stride: Shaped[XpArray, "items"],
    *,
    design: Design,
    gap: Int[XpArray, ""] | int,
    special: SpecialTokens,
    merge_size: int,
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
        merge_size: patches on a side of a token.

    Returns:
        The fields of a `StreamLayout` by name.
    """
    index = xp.arange(len(input_ids))
    is_real = index < num_tokens
    cells = read_visual_cells(xp, input_ids, is_real, grid_thw, temporal_stride, special, merge_size)
    tokens = read_chat_tokens(xp, input_ids, is_real, cells.frames_begun, counts, special)
    return arrange_tokens(xp, input_ids, cells, tokens, design, gap)


def arrange_tokens(
    xp: ModuleType, input_ids: Ints, cells: VisualCells, tokens: ChatTokens, design: Design, gap: Int[XpArray, ""] | int
) -> dict[str, Any]:
    """The fields of a `StreamLayout` by name, from what each token is and where it stands in its frame.

    Args:
        xp: numpy or jax.numpy.
        input_ids: int[L] in the order of `cells` and `tokens`; `chat_index` counts in it.
        cells: where each token stands in its image or video (`read_visual_cells`).
        tokens: what each token is, and which are padding (`read_chat_tokens`, or `read_conversation_tokens`).
        design: the position design.
        gap: first id of the answer in GIPE.
    """
    is_real = tokens.is_real
    slot_to_chat, spans = _store(xp, tokens, design.storage)

    advance = _advance(xp, cells, is_real, frame_by_frame=design.frame_by_frame)
    base = _count_by_steps(xp, tokens, advance, design, gap)[slot_to_chat]
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


def _store(xp: ModuleType, tokens: ChatTokens, storage: Storage) -> tuple[Ints, KeySpans]:
    """The permutation from slot to index in the chat, and the span of each slot; padding stays behind, on its own."""
    index = xp.arange(len(tokens.is_real))
    causal = KeySpans(xp.where(tokens.is_real, 0, index), index + 1)
    match storage:
        case Storage.CHAT:
            return index, causal
        case Storage.ARRIVAL:
            arrival = xp.where(tokens.is_real, 2 * tokens.step + tokens.is_target, 2 * len(index))
            return xp.argsort(arrival, stable=True), causal
        case Storage.GROUPED:
            return _store_groups(xp, tokens)
    assert_never(storage)


def _store_groups(xp: ModuleType, tokens: ChatTokens) -> tuple[Ints, KeySpans]:
    """The group mask (paper, figure 3) as a span a slot: a source sees the sources up to itself, and a target those
    that had arrived when it was spoken and the targets up to itself, which are stored in reverse before the sources."""
    index = xp.arange(len(tokens.is_real))
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


def _advance(xp: ModuleType, cells: VisualCells, is_real: Bools, *, frame_by_frame: bool) -> Ints:
    """How far each token moves the count: text by one, an image or video by its largest id plus one, at its end."""
    ends, extent = (cells.ends_frame, cells.frame_extent) if frame_by_frame else (cells.ends_item, cells.item_extent)
    return xp.where(cells.is_visual, ends * extent, 1) * is_real


def _count(xp: ModuleType, advance: Ints | Bools) -> Ints:
    """The count at each token: what all tokens before it have moved it by."""
    return xp.cumsum(advance) - advance


def _count_by_steps(
    xp: ModuleType, tokens: ChatTokens, advance: Ints, design: Design, gap: Int[XpArray, ""] | int
) -> Ints:
    """The id at which each token stands: counted on from where the sources, or the words, of its step begin."""
    step, opens_turn = tokens.step, tokens.opens_turn
    if not design.speaks_while_watching:
        step, opens_turn = tokens.turn, xp.ones_like(tokens.is_real)
    of_sources, of_words = xp.where(tokens.is_target, 0, advance), xp.where(tokens.is_target, advance, 0)
    extents, words, opens = (
        _sum_by_step(xp, values, step) for values in (of_sources, of_words, opens_turn & tokens.is_real)
    )
    first_target = design.first_target(gap)
    before = StepEnds(words=first_target, source=0, target=first_target)
    num_steps = xp.where(tokens.is_real, step + 1, 0).max(initial=0)
    first_source, first_word = _first_ids(xp, design.counting, before, extents, words, opens > 0, num_steps)
    return xp.where(
        tokens.is_target,
        (first_word - _count(xp, words))[step] + _count(xp, of_words),
        (first_source - _count(xp, extents))[step] + _count(xp, of_sources),
    )


def _first_ids(
    xp: ModuleType,
    counting: Counting,
    before: StepEnds,
    extents: Ints,
    words: Ints,
    opens: Bools,
    num_steps: Int[XpArray, ""],
) -> tuple[Ints, Ints]:
    """The ids at which the sources, and the words, of each step begin, going from one step to the next."""

    def next_step(before: StepEnds, extent: Integer, words: Integer, opens_turn: Flag) -> tuple[Integer, StepEnds]:
        source = counting.first_source(before, opens_turn, xp)
        return source, counting.end(before, source + extent, words, xp)

    if xp is np:
        firsts = np.zeros((2, len(extents)), np.int64)
        totals = zip(*(values[:num_steps].tolist() for values in (extents, words, opens)), strict=True)
        for step, total in enumerate(totals):
            source, before = next_step(before, *total)
            firsts[:, step] = source, before.words
        return firsts[0], firsts[1]

    from jax.lax import fori_loop  # comes with jax.numpy; this room does without for as long as it is numpy's

    def body(step: Integer, carry: tuple[XpArray, StepEnds]) -> tuple[XpArray, StepEnds]:
        source, ends = next_step(carry[1], extents[step], words[step], opens[step])
        return carry[0].at[:, step].set(xp.stack([source, ends.words])), _integers(xp, ends)

    nothing = xp.zeros((2, len(extents)), xp.int32)
    firsts, _ = fori_loop(0, num_steps, body, (nothing, _integers(xp, before)))
    return firsts[0], firsts[1]


def _integers(xp: ModuleType, ends: StepEnds) -> StepEnds:
    return StepEnds(*(xp.asarray(end, xp.int32) for end in ends))


def _sum_by_step(xp: ModuleType, values: Ints | Bools, step: Ints) -> Ints:
    """Sums of the values of each step, with room for as many steps as tokens."""
    if xp is np:
        return np.bincount(step, values, len(step)).astype(np.int64)
    return xp.zeros(len(step), int).at[step].add(values)


def _next(xp: ModuleType, values: Ints) -> Ints:
    """The value of the token after each."""
    return xp.concatenate([values[1:], xp.full(min(1, len(values)), NO_LABEL, values.dtype)])
