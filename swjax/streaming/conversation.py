"""Conversations with a running stream: text arrives between the frames, and answers are spoken when they are due.

A conversation is the list of its events in the order of time. Frames and texts are sources and stand in one causal
line. Answers are targets and stand in another, in the order in which they are spoken, whatever question each belongs
to. A *source item* is a frame, or a text that arrives between frames; words are spoken after one of them.
docs/differences.md says what sees what.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, Int64, Shaped

from swjax.streaming.arrange import arrange_tokens
from swjax.streaming.arrays import Ints, Schedule, XpArray
from swjax.streaming.chat import read_conversation_tokens, read_visual_cells
from swjax.streaming.geometry import Geometry
from swjax.streaming.layout import StreamLayout
from swjax.streaming.schedule import tokens_per_frame_schedule
from swjax.streaming.spec import StreamSpec
from swjax.streaming.tokens import SpecialTokens
from swjax.streaming.variants import DESIGNS, Design, Variant


@dataclass(frozen=True)
class SourceText:
    """Text that arrives: the prompt, a question, a subtitle, a line of a sensor.

    Attributes:
        token_ids: its tokens, with whatever marks it in the chat. Between frames it ends one piece of video and begins
            another, so it begins with `<|vision_end|>` and ends with `<|vision_start|>`.
        is_item: whether words may be spoken between it and the source before it; else it belongs to the frame beside
            it: the prompt to the first, and what closes the video to the last.
    """

    token_ids: tuple[int, ...]
    is_item: bool = True


@dataclass(frozen=True)
class SourceFrame:
    """A frame that arrives.

    Attributes:
        rows, columns: its size in tokens.
    """

    rows: int
    columns: int


@dataclass(frozen=True)
class Spoken:
    """Targets that are stored one after another: parts of an answer, with its prefix, `<|im_end|>` and newline."""

    token_ids: tuple[int, ...]


Source = SourceText | SourceFrame
Event = Source | Spoken


@dataclass(frozen=True)
class Answer:
    """What is said in one message.

    Attributes:
        words: its tokens, without the prefix and what closes it.
        after: number of the source item after which it may begin at the earliest, such as that of its question.
        is_closed: whether `<|im_end|>\\n` follows the words; not if it is still open, or has been interrupted.
    """

    words: tuple[int, ...]
    after: int = 0
    is_closed: bool = True


@dataclass(frozen=True)
class Conversation:
    """A conversation as arrays: sources in the order of arrival, then targets in the order of speech.

    Attributes:
        token_ids: int32[L].
        step: int32[L], the number of the source item with which each arrives, or after which it is spoken.
        num_sources: how many of them are sources.
        video_grid_thw: int64[pieces, 3], frames and patch rows and columns of each run of frames without text between.
    """

    token_ids: Int32[np.ndarray, "L"]
    step: Int32[np.ndarray, "L"]
    num_sources: int
    video_grid_thw: Int64[np.ndarray, "pieces 3"]


@dataclass
class _Line:
    """The tokens of one group so far, and the step of each."""

    token_ids: list[int] = field(default_factory=list)
    step: list[int] = field(default_factory=list)

    def add(self, token_ids: Sequence[int], step: int) -> None:
        self.token_ids += token_ids
        self.step += [step] * len(token_ids)


def number_items(events: Sequence[Event]) -> list[int]:
    """The source item to which each source belongs, or after which each piece is spoken; the first is 0.

    Args:
        events: in the order of time.

    Raises:
        ValueError: if something is spoken before anything has arrived.
    """
    item, has_item, has_words = 0, False, False
    numbers = []
    for number, event in enumerate(events):
        if isinstance(event, Spoken):
            if not number:
                raise ValueError("a conversation cannot begin with an answer: put the prompt or a frame before it")
            has_words = True
        else:
            is_item = isinstance(event, SourceFrame) or event.is_item
            if has_words or (is_item and has_item):
                item, has_item, has_words = item + 1, False, False
            has_item |= is_item
        numbers.append(item)
    return numbers


def read_events(
    events: Sequence[Event], special_tokens: SpecialTokens, *, merge_size: int = Geometry.merge_size
) -> Conversation:
    """A conversation's events as arrays.

    Args:
        events: in the order of time.
        special_tokens: ids of the tokens that give the chat its structure.
        merge_size: patches on a side of a token.

    Raises:
        ValueError: names the event that cannot be, and why.
    """
    pads = {special_tokens.video_pad, special_tokens.image_pad}
    sources, targets = _Line(), _Line()
    pieces: list[list[int]] = []
    in_piece = False
    for number, (event, item) in enumerate(zip(events, number_items(events), strict=True)):
        if isinstance(event, SourceFrame):
            size = [merge_size * event.rows, merge_size * event.columns]
            if min(size) < 1:
                raise ValueError(f"event {number} is a frame of {event.rows} x {event.columns} tokens; it needs one")
            if in_piece and pieces[-1][1:] != size:
                raise ValueError(
                    f"event {number} is a frame of {size} patches after one of {pieces[-1][1:]}; frames of different "
                    "sizes need text between them (<|vision_end|><|vision_start|>)"
                )
            if not in_piece:
                pieces.append([0, *size])
            pieces[-1][0] += 1
            in_piece = True
            sources.add([special_tokens.video_pad] * (event.rows * event.columns), item)
            continue
        if not event.token_ids or pads & set(event.token_ids):
            raise ValueError(f"event {number} must have tokens, and none of images or videos: {event}")
        if isinstance(event, SourceText):
            in_piece = False
            sources.add(event.token_ids, item)
        else:
            targets.add(event.token_ids, item)
    prefix = special_tokens.prefix
    opening = tuple(targets.token_ids[: len(prefix)])
    if opening != prefix[: len(opening)]:
        raise ValueError(f"the first answer must begin with the assistant's prefix {prefix}, got {opening}")
    return Conversation(
        token_ids=np.array(sources.token_ids + targets.token_ids, np.int32),
        step=np.array(sources.step + targets.step, np.int32),
        num_sources=len(sources.token_ids),
        video_grid_thw=np.array(pieces, np.int64).reshape(-1, 3),
    )


def arrange_conversation(
    xp: ModuleType,
    input_ids: Ints,
    num_tokens: Int[XpArray, ""] | int,
    num_sources: Int[XpArray, ""] | int,
    step: Ints,
    grid_thw: Int[XpArray, "pieces 3"],
    temporal_stride: Shaped[XpArray, "pieces"],
    *,
    design: Design,
    gap: Int[XpArray, ""] | int,
    special: SpecialTokens,
    merge_size: int,
) -> dict[str, Any]:
    """Arrange a conversation: sources that arrive, text among them, while targets are spoken.

    Args:
        xp: numpy or jax.numpy.
        input_ids: int[L], the sources in order of arrival, then the targets in the order of speech; tokens from
            `num_tokens` on are padding.
        num_tokens, num_sources: sources and targets together, and sources alone.
        step: the step at which each token arrives or is spoken.
        grid_thw: the pieces of video in order, at least one row; (0, 0, 0) is none.
        temporal_stride: ids from one frame to the next, of each piece.
        design, gap, special, merge_size: as in `swjax.streaming.arrange.arrange`.

    Returns:
        The fields of a `StreamLayout` by name.
    """
    is_real = xp.arange(len(input_ids)) < num_tokens
    cells = read_visual_cells(xp, input_ids, is_real, grid_thw, temporal_stride, special, merge_size)
    tokens = read_conversation_tokens(xp, input_ids, is_real, step, num_sources, special)
    return arrange_tokens(xp, input_ids, cells, tokens, design, gap)


def build_conversation(
    events: Sequence[Event],
    *,
    variant: Variant | str,
    gap: int = StreamSpec.gap,
    second_per_grid_t: float = 1.0,
    tokens_per_second: float = Geometry.tokens_per_second,
    merge_size: int = Geometry.merge_size,
    special_tokens: SpecialTokens,
) -> StreamLayout:
    """Lay out a conversation for training, or up to what has happened so far.

    Without text between the frames it is what `build_layout` makes of the same chat. The `chat_index` of a slot is the
    index in `read_events(events)`.

    Args:
        events: in the order of time. A design that speaks after the whole video has all sources before all targets.
        variant: name or alias of a position design.
        gap: first id of the targets in GIPE.
        second_per_grid_t: seconds from one frame (temporal grid step) to the next.
        tokens_per_second: temporal ids a second; 2 in Qwen2.5-VL.
        merge_size: patches on a side of a token.
        special_tokens: ids of the tokens that give the chat its structure.

    Raises:
        ValueError: if an event cannot be, the gap is negative, or the times are not above 0.
    """
    if gap < 0:
        raise ValueError(f"gap must be at least 0, got {gap}")
    stride = second_per_grid_t * tokens_per_second
    if not 0 < stride < np.inf:
        raise ValueError(f"second_per_grid_t * tokens_per_second must be above 0, got {stride}")
    conversation = read_events(events, special_tokens, merge_size=merge_size)
    grid = conversation.video_grid_thw if len(conversation.video_grid_thw) else np.zeros((1, 3), np.int64)
    fields = arrange_conversation(
        np,
        conversation.token_ids,
        len(conversation.token_ids),
        conversation.num_sources,
        conversation.step,
        grid,
        np.full(len(grid), stride),
        design=DESIGNS[Variant(variant)],
        gap=gap,
        special=special_tokens,
        merge_size=merge_size,
    )
    return StreamLayout(**fields)


def schedule_answers(
    sources: Sequence[Source],
    answers: Sequence[Answer],
    schedule: Schedule,
    special_tokens: SpecialTokens,
) -> tuple[Event, ...]:
    """The events of answers that wait for one another and are spoken by a schedule.

    An answer begins when its item has arrived and the one before it has been spoken. Its prefix comes at once, and its
    words and `<|im_end|>` as the schedule lets them; what is left is spoken after the last item, whatever is closed or
    not. One answer with `after` 0 is spoken as in `build_layout`.

    Args:
        sources: in order of arrival.
        answers: in the order in which they are spoken.
        schedule: tokens after each source item, an int k or a count for each item.
        special_tokens: ids of the tokens that give the chat its structure.

    Raises:
        ValueError: if an answer waits for an item that never arrives, or the schedule does not fit the items.
    """
    num_items = number_items(sources)[-1] + 1 if sources else 0
    for number, answer in enumerate(answers):
        if not 0 <= answer.after < num_items:
            raise ValueError(f"answer {number} waits for item {answer.after}, and there are {num_items}, from 0 on")
    left = tokens_per_frame_schedule(schedule, num_items).tolist()
    spoken: list[list[int]] = [[] for _ in range(num_items)]
    item = 0
    for answer in answers:
        item = max(item, answer.after)
        spoken[item] += special_tokens.prefix
        for token in (*answer.words, *[special_tokens.im_end] * answer.is_closed):
            while item < num_items - 1 and not left[item]:
                item += 1
            left[item] -= 1
            spoken[item].append(token)
        spoken[item] += [special_tokens.newline] * answer.is_closed
    return speak_after_items(sources, spoken)


def speak_after_items(sources: Sequence[Source], spoken: Sequence[Sequence[int]]) -> tuple[Event, ...]:
    """The events of sources, and of what is spoken after each source item.

    Args:
        sources: in order of arrival.
        spoken: the targets after each source item, none where nothing is said.
    """
    events: list[Event] = []
    items = number_items(sources)
    for number, source in enumerate(sources):
        events.append(source)
        ends_item = number + 1 == len(sources) or items[number + 1] > items[number]
        if ends_item and spoken[items[number]]:
            events.append(Spoken(tuple(spoken[items[number]])))
    return tuple(events)
