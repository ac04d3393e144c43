"""Answers that decide when to speak: after each source item a skip token, or words and an end of thought.

The first token after an item is predicted by the target before it, which already sees the item. So the decision costs
one target an item, every query keeps its one span, and all designs that speak while watching can learn it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from swjax.streaming.arrays import Times
from swjax.streaming.conversation import Event, Source, SourceFrame, SourceText, number_items, speak_after_items
from swjax.streaming.schedule import ascending
from swjax.streaming.tokens import SpecialTokens


@dataclass(frozen=True)
class DecisionTokens:
    """Ids of the tokens of decisions. The defaults are free rows of Qwen2.5-VL's vocabulary, those that TaYS takes.

    Attributes:
        skip: said in the place of words.
        end: said after words.
    """

    skip: int = 151_665
    end: int = 151_667


QWEN_DECISIONS = DecisionTokens()
"""Those of a vocabulary of Qwen2.5-VL that they have been added to."""


def order_by_time(
    frames: Sequence[SourceFrame],
    arrival_s: Times,
    texts: Sequence[tuple[float, SourceText]],
    *,
    prompt: SourceText,
    close: SourceText | None = None,
) -> tuple[tuple[Source, ...], Float[np.ndarray, "items"]]:
    """Frames and texts in the order in which they arrive; of those at one time frames come first.

    Args:
        frames: of the video.
        arrival_s: when each arrives, seconds, ascending.
        texts: when each arrives, ascending, and the text: each is an item of its own.
        prompt: what stands before the first frame, no item of its own.
        close: what closes the video, no item of its own.

    Returns:
        The sources, and when each source item arrives, in seconds.

    Raises:
        ValueError: if times go backwards, there are not as many as frames, or a text comes before the first frame.
    """
    arrivals, asked = ascending("arrival_s", arrival_s), ascending("times of texts", [time for time, _ in texts])
    if len(arrivals) != len(frames) or not len(frames):
        raise ValueError(f"each frame arrives at its time, and there must be one, got {len(frames)} and {arrivals}")
    if len(asked) and asked[0] < arrivals[0]:
        raise ValueError(
            f"a text arrives at {asked[0]} s, before the first frame ({arrivals[0]} s): put it into the prompt"
        )
    times = np.concatenate([arrivals, asked])
    order = np.argsort(times, kind="stable")
    items: list[Source] = [*frames, *(text for _, text in texts)]
    sources = [prompt, *(items[number] for number in order), *([close] if close else [])]
    if number_items(sources)[-1] + 1 != len(items):
        raise ValueError("the prompt and what closes the video are no items, and each text between frames is one")
    return tuple(sources), times[order]


def thoughts_by_item(
    said: Sequence[tuple[float, Sequence[int]]], item_s: Float[np.ndarray, "items"]
) -> list[tuple[int, ...]]:
    """The words after each source item, from when each thought is due: after the first item that arrives then or later.

    Thoughts that fall on one item are said one after another, as one.

    Args:
        said: when each is due, in seconds, ascending, and its tokens.
        item_s: when each source item arrives, seconds, ascending.

    Raises:
        ValueError: if times go backwards, or a thought is due when nothing arrives any more.
    """
    due, arrivals = ascending("times of thoughts", [time for time, _ in said]), ascending("item_s", item_s)
    if len(due) and (not len(arrivals) or due[-1] > arrivals[-1]):
        raise ValueError(f"a thought is due at {due[-1]} s, and the last source item arrives at {arrivals[-1:]} s")
    thoughts: list[tuple[int, ...]] = [()] * len(arrivals)
    for item, (_, words) in zip(np.searchsorted(arrivals, due), said, strict=True):
        thoughts[item] += tuple(words)
    return thoughts


def decide_after_items(
    sources: Sequence[Source],
    thoughts: Sequence[Sequence[int]],
    *,
    decisions: DecisionTokens,
    special_tokens: SpecialTokens,
    after: int = 0,
) -> tuple[Event, ...]:
    """The events of one message that decides after each source item whether to speak.

    Args:
        sources: in order of arrival.
        thoughts: words after each item; none is a skip.
        decisions: ids of the tokens of decisions.
        special_tokens: ids of the tokens that give the chat its structure.
        after: number of the source item, such as that of a question, after which it begins.

    Raises:
        ValueError: if there are not as many thoughts as items, one is due before the message begins, or one holds a
            token of decisions.
    """
    num_items = number_items(sources)[-1] + 1 if sources else 0
    if len(thoughts) != num_items or not 0 <= after < num_items:
        raise ValueError(f"there are {num_items} source items, {len(thoughts)} thoughts, and a beginning at {after}")
    early = [item for item in range(after) if thoughts[item]]
    if early:
        raise ValueError(f"a thought is due after item {early[0]}, and the message begins after item {after}")
    spoken: list[list[int]] = [[] for _ in range(num_items)]
    spoken[after] += special_tokens.prefix
    for item in range(after, num_items):
        words = list(thoughts[item])
        if {decisions.skip, decisions.end} & set(words):
            raise ValueError(f"the thought after item {item} holds a token of decisions: {words}")
        spoken[item] += [*words, decisions.end] if words else [decisions.skip]
    spoken[-1] += special_tokens.im_end, special_tokens.newline
    return speak_after_items(sources, spoken)
