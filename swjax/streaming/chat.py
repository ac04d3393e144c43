"""Reading a chat: what each token is, which frame it belongs to and when it comes, as arrays over its tokens.

Every function takes the array namespace `xp`, numpy or jax.numpy, and works on fixed shapes without a loop over
tokens, so the same lines run on the host and inside jit. Nothing is checked here; `swjax.streaming.checks` does.
"""

from types import ModuleType
from typing import NamedTuple

from jaxtyping import Int, Shaped

from swjax.streaming.arrays import Bools, Ints, XpArray
from swjax.streaming.positions import temporal_ids
from swjax.streaming.schedule import last_visible_frame
from swjax.streaming.tokens import SpecialTokens


class VisualCells(NamedTuple):
    """Where each token stands in its image or video; meaningless where `is_visual` is false.

    Attributes:
        is_visual: tokens of images and videos.
        row, column: place in the frame, in merged patches.
        temporal: temporal id within the image or video.
        frame_extent: the larger side of a frame: ids that one frame takes up.
        item_extent: ids that the whole image or video takes up.
        ends_frame, ends_item: last token of a frame, of an image or video.
        frames_begun: video frames (not images) begun up to and including the token.
    """

    is_visual: Bools
    row: Ints
    column: Ints
    temporal: Ints
    frame_extent: Ints
    item_extent: Ints
    ends_frame: Bools
    ends_item: Bools
    frames_begun: Ints


class ChatTokens(NamedTuple):
    """What each token of a chat is, in chat order.

    A chat is a sequence of turns: sources (system prompt, question, images, videos), then the targets that answer
    them. A step is a frame, with what arrives after it until the next one; a turn without frames is one step.

    Attributes:
        is_real: false for padding behind the chat.
        is_target: tokens of answers, with their prefix, `<|im_end|>` and final newline.
        is_labelled: tokens that training predicts: the answers and their `<|im_end|>`.
        turn: the number of the turn.
        step: the step at which the token arrives or is spoken.
        opens_turn: whether the step is the first of its turn.
        seen_sources: sources that the query of a target sees under the group mask.
    """

    is_real: Bools
    is_target: Bools
    is_labelled: Bools
    turn: Ints
    step: Ints
    opens_turn: Bools
    seen_sources: Ints


def read_visual_cells(
    xp: ModuleType,
    input_ids: Ints,
    is_real: Bools,
    grid_thw: Int[XpArray, "items 3"],
    temporal_stride: Shaped[XpArray, "items"],
    special: SpecialTokens,
    merge_size: int,
) -> VisualCells:
    """Find the place of each image and video token.

    Args:
        xp: numpy or jax.numpy.
        input_ids: int[L] in chat order.
        is_real: false for padding.
        grid_thw: images and videos in chat order, at least one row; (0, 0, 0) is none.
        temporal_stride: float32[items], ids from one frame to the next.
        special: the ids of pads.
        merge_size: patches on a side of a token.
    """
    is_visual = ((input_ids == special.video_pad) | (input_ids == special.image_pad)) & is_real
    rows, columns = grid_thw[:, 1] // merge_size, grid_thw[:, 2] // merge_size
    cells = rows * columns
    item_ends = xp.cumsum(grid_thw[:, 0] * cells)
    number = xp.cumsum(is_visual) - 1
    item = xp.minimum(xp.searchsorted(item_ends, number, side="right"), len(grid_thw) - 1)
    within_item = number - (item_ends - grid_thw[:, 0] * cells)[item]
    frame, cell = xp.divmod(within_item, xp.maximum(cells, 1)[item])
    row, column = xp.divmod(cell, xp.maximum(columns, 1)[item])

    stride = xp.asarray(temporal_stride, xp.float32)
    temporal = temporal_ids(frame, stride[item], xp=xp)
    last = temporal_ids(xp.maximum(grid_thw[:, 0] - 1, 0), stride, xp=xp)
    frame_extent = xp.maximum(rows, columns)
    starts_frame = is_visual & (input_ids == special.video_pad) & (cell == 0)
    return VisualCells(
        is_visual=is_visual,
        row=row,
        column=column,
        temporal=temporal,
        frame_extent=frame_extent[item],
        item_extent=xp.maximum(last + 1, frame_extent)[item],
        ends_frame=is_visual & (cell == cells[item] - 1),
        ends_item=is_visual & (number == item_ends[item] - 1),
        frames_begun=xp.cumsum(starts_frame),
    )


def read_chat_tokens(
    xp: ModuleType,
    input_ids: Ints,
    is_real: Bools,
    frames_begun: Ints,
    counts: Int[XpArray, "F"],
    special: SpecialTokens,
) -> ChatTokens:
    """Find turns, answers and steps.

    Args:
        xp: numpy or jax.numpy.
        input_ids: int[L] in chat order.
        is_real: false for padding.
        frames_begun: video frames begun up to and including each token.
        counts: answer tokens spoken after each frame of the whole chat.
        special: the ids of the tokens that give the chat its structure.
    """
    index = xp.arange(len(input_ids))
    message, message_start, opens = _read_messages(xp, input_ids, is_real, special)
    is_target = opens[message_start] & (message > 0) & is_real
    turns_opened = xp.cumsum(opens)
    turn = turns_opened - is_target
    answer_index = index - message_start - len(special.prefix)

    # Frames of the turn are numbers `first` to `stop - 1` of all frames in the chat.
    previous_answer = xp.searchsorted(turns_opened, turn, side="left")
    first = xp.where(turn == 0, 0, frames_begun[previous_answer])
    stop = frames_begun
    steps_of_turn = xp.maximum(stop - first, 1)
    steps_answered = xp.cumsum(xp.where(opens, steps_of_turn, 0))
    first_step = steps_answered - xp.where(is_target, steps_of_turn, 0)

    def frame_of(answer_index: Ints) -> Ints:
        """The frame after which an answer token is spoken; the prefix comes with the first."""
        before = xp.concatenate([xp.zeros(1, int), xp.cumsum(counts)])[first]
        frame = last_visible_frame(counts, xp.maximum(answer_index, 0) + before, xp=xp)
        return xp.minimum(xp.where(answer_index < 0, first, xp.maximum(frame, first)), stop - 1)

    frame = xp.where(is_target, frame_of(answer_index), frames_begun - 1)
    step_in_turn = xp.maximum(frame - first, 0)
    visible = frame_of(answer_index + 1)
    boundary = xp.minimum(xp.searchsorted(frames_begun, visible + 1, side="right"), message_start)
    sources_before = xp.cumsum(~is_target & is_real) - (~is_target & is_real)
    return ChatTokens(
        is_real=is_real,
        is_target=is_target,
        is_labelled=_is_labelled(xp, input_ids, is_target, message_start, special),
        turn=turn,
        step=first_step + step_in_turn,
        opens_turn=step_in_turn == 0,
        seen_sources=sources_before[boundary],
    )


def read_conversation_tokens(
    xp: ModuleType,
    input_ids: Ints,
    is_real: Bools,
    step: Ints,
    num_sources: Int[XpArray, ""] | int,
    special: SpecialTokens,
) -> ChatTokens:
    """The tokens of a conversation: all sources in order of arrival, then all targets in the order of speech.

    A target is stored when its successor is spoken, and sees the sources that have arrived by then.

    Args:
        xp: numpy or jax.numpy.
        input_ids: int[L], sources before targets.
        is_real: false for padding.
        step: the step at which each token arrives or is spoken, never falling among sources and among targets.
        num_sources: how many of the tokens are sources.
        special: the ids of the tokens that give the chat its structure.
    """
    index = xp.arange(len(input_ids))
    is_source = index < num_sources
    is_target = is_real & ~is_source
    _, message_start, _ = _read_messages(xp, input_ids, is_target, special)
    spoken_next = xp.minimum(index + 1, xp.maximum(is_real.sum() - 1, 0))
    arrived = xp.where(is_source, step, len(index))
    return ChatTokens(
        is_real=is_real,
        is_target=is_target,
        is_labelled=_is_labelled(xp, input_ids, is_target, message_start, special),
        turn=xp.zeros_like(index),
        step=xp.where(is_real, step, 0),
        opens_turn=step == 0,
        seen_sources=xp.searchsorted(arrived, step[spoken_next], side="right"),
    )


def _read_messages(xp: ModuleType, input_ids: Ints, within: Bools, special: SpecialTokens) -> tuple[Ints, Ints, Bools]:
    """The number of each token's message, from 1 on, the index that opens it, and where an answer opens."""
    starts = (input_ids == special.im_start) & within
    message = xp.cumsum(starts)
    opens = starts & _follows(xp, input_ids == special.assistant, 1) & _follows(xp, input_ids == special.newline, 2)
    return message, xp.searchsorted(message, message, side="left"), opens


def _is_labelled(
    xp: ModuleType, input_ids: Ints, is_target: Bools, message_start: Ints, special: SpecialTokens
) -> Bools:
    """Words and the first `<|im_end|>` of each answer."""
    answer_index = xp.arange(len(input_ids)) - message_start - len(special.prefix)
    is_end = (input_ids == special.im_end) & is_target
    ends = xp.cumsum(is_end)
    return is_target & (answer_index >= 0) & (ends - is_end == ends[message_start])


def _follows(xp: ModuleType, condition: Bools, distance: int) -> Bools:
    """Whether the condition holds `distance` tokens further on."""
    return xp.concatenate([condition[distance:], xp.zeros(min(distance, len(condition)), bool)])
