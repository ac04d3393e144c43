"""When to speak: rules that say, after each source item and after each word, whether the next word may be spoken.

A rule is a frozen dataclass with a method of a `Moment`, which holds what is known then and nothing of the future. Some
need a measurement that costs something, a probability or how much a frame differs from the one before; their `needs`
names it, so that nothing else is measured. A new rule is a class here, or anywhere else, and a row of `SPEAKING`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from swjax.streaming.arrays import XpArray
from swjax.streaming.named import make_named

DIFFERENT_BELOW = 0.5
"""Cosine with the feature at the same place of the frame before, above which one says nothing new (TimeChat-Online)."""


class Moment(NamedTuple):
    """What is known when it is to be decided whether another word is spoken.

    Attributes:
        item: number of the newest source item, 0 for the first.
        time_s: when it arrived, in seconds of the video.
        words: how many words have been spoken since.
        in_utterance: whether something has been begun, and neither finished nor interrupted.
        skip_probability: of the skip token as the next one.
        skip_is_likeliest: whether no other token is likelier.
        drop_ratio: share of the item's features that say nothing new (`drop_ratio`).
        surprise: perplexity of what was said last, read again now that the item has arrived, over what it was with the
            items that it was said of; None where nothing has been said.
    """

    item: int
    time_s: float
    words: int = 0
    in_utterance: bool = False
    skip_probability: float | None = None
    skip_is_likeliest: bool | None = None
    drop_ratio: float | None = None
    surprise: float | None = None


@runtime_checkable
class Speaking(Protocol):
    """A rule: a frozen dataclass whose fields are numbers."""

    needs: ClassVar[frozenset[str]]
    """Fields of a `Moment` that must be measured when nothing is being said."""

    def speaks(self, moment: Moment) -> bool:
        """Whether another word is spoken before the next source item arrives; whether it ends is the model's to say."""


def _utterance(moment: Moment, most: int, begins: Callable[[Moment], bool]) -> bool:
    """An utterance may begin at once when an item has arrived; it is finished at `most` words an item."""
    return moment.words < most and (moment.in_utterance or (moment.words == 0 and begins(moment)))


@dataclass(frozen=True)
class WaitK:
    """The paper's schedule: so many words after each item, whatever is to be seen (section 3)."""

    k: int = 3
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        _check(self, k=1)

    def speaks(self, moment: Moment) -> bool:
        """Whether fewer than k have been spoken since the item."""
        return moment.words < self.k


@dataclass(frozen=True)
class Always:
    """An utterance after each item."""

    most: int = 300
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        _check(self, most=1)

    def speaks(self, moment: Moment) -> bool:
        """Whether one is to begin or to be finished."""
        return _utterance(moment, self.most, lambda _: True)


@dataclass(frozen=True)
class Never:
    """Silence."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def speaks(self, moment: Moment) -> bool:
        """No."""
        return False


@dataclass(frozen=True)
class Timer:
    """An utterance after every so many items: `first`, `first + period`, ..."""

    period: int = 5
    first: int = 0
    most: int = 300
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        _check(self, period=1, first=0, most=1)

    def speaks(self, moment: Moment) -> bool:
        """Whether the item is one of them."""
        return _utterance(moment, self.most, self._is_due)

    def _is_due(self, moment: Moment) -> bool:
        return moment.item >= self.first and (moment.item - self.first) % self.period == 0


@dataclass(frozen=True)
class Decide:
    """Decision tokens: after each item the model says a skip token or an utterance.

    LIVE's threshold: skip is not chosen where its probability is below it, however likely it is beside others.
    """

    threshold: float = 0.0
    most: int = 300
    needs: ClassVar[frozenset[str]] = frozenset({"skip_probability", "skip_is_likeliest"})

    def __post_init__(self) -> None:
        _check(self, threshold=0, most=1)

    def speaks(self, moment: Moment) -> bool:
        """Whether skip is less likely than the threshold, or than something else."""
        return _utterance(moment, self.most, self._prefers_words)

    def _prefers_words(self, moment: Moment) -> bool:
        below = measured(moment, "skip_probability") < self.threshold
        return bool(below or not measured(moment, "skip_is_likeliest"))


@dataclass(frozen=True)
class DropTrigger:
    """An utterance when a frame is new: TimeChat-Online's trigger (2025), with a fixed bound in place of the file's.

    Their demonstration takes the tenth of a file's frames with the lowest ratios, which a stream cannot know.
    """

    below: float = 0.5
    most: int = 300
    needs: ClassVar[frozenset[str]] = frozenset({"drop_ratio"})

    def __post_init__(self) -> None:
        _check(self, below=0, most=1)

    def speaks(self, moment: Moment) -> bool:
        """Whether fewer of the features than the bound say nothing new."""
        return _utterance(moment, self.most, lambda now: bool(measured(now, "drop_ratio") < self.below))


@dataclass(frozen=True)
class Verify:
    """An utterance when the last one no longer fits: LiveStar's streaming verification (SVeD, 2025).

    What was said last is read again, in its place, with the new item among what it sees; no word is decoded for that.
    """

    factor: float = 1.04
    most: int = 300
    needs: ClassVar[frozenset[str]] = frozenset({"surprise"})

    def __post_init__(self) -> None:
        _check(self, factor=0, most=1)

    def speaks(self, moment: Moment) -> bool:
        """Whether its perplexity has risen by more than the factor, or nothing has been said yet."""
        return _utterance(moment, self.most, lambda now: now.surprise is None or bool(now.surprise > self.factor))


SPEAKING: dict[str, Callable[..., Speaking]] = {
    "wait_k": WaitK,
    "always": Always,
    "never": Never,
    "timer": Timer,
    "decide": Decide,
    "drop_trigger": DropTrigger,
    "verify": Verify,
}
"""Rules by name. Others may be added from outside."""


def speaking_of(text: str) -> Speaking:
    """A rule from its name and its numbers: `never`, `wait_k:k=3`, `decide:threshold=0.7,most=20`.

    Args:
        text: the name, and after a colon the numbers that are not to be the default.

    Raises:
        ValueError: if there is no such rule, it has no such number, or a number is given twice or out of range.
    """
    return make_named(text, SPEAKING, "rule of speaking")


def measured(moment: Moment, name: str) -> Any:
    """A measurement that a rule needs.

    Args:
        moment: what is known.
        name: of the field.

    Raises:
        ValueError: if it has not been taken.
    """
    value = getattr(moment, name)
    if value is None:
        raise ValueError(f"{name} must be measured before it is asked whether to speak after item {moment.item}")
    return value


def count_words(rule: Speaking, moments: Sequence[Moment], utterances: Sequence[int]) -> Int32[np.ndarray, "items"]:
    """How many words a rule speaks after each item, if all that is to be said is known: a schedule.

    Args:
        rule: when to speak.
        moments: of each item as it arrives.
        utterances: the lengths of what is said, one after another, with the token that ends each; nothing follows the
            last, and what the rule leaves unsaid is not in the counts.
    """
    counts = np.zeros(len(moments), np.int32)
    waiting, left = list(utterances)[::-1], 0
    for number, moment in enumerate(moments):
        while (left or waiting) and rule.speaks(moment._replace(words=int(counts[number]), in_utterance=left > 0)):
            left = (left or waiting.pop()) - 1
            counts[number] += 1
    return counts


def surprise(now: Float[np.ndarray, "N"], before: Float[np.ndarray, "N"]) -> float:
    """How many times as perplexed a model is by what was said last as it was when it said it.

    Args:
        now: cross entropy of each of its tokens, the one that ends it included, with what has arrived since; nats.
        before: the same with what had arrived when it was said.
    """
    return float(np.exp(np.mean(now) - np.mean(before)))


def skip_is_unwanted(
    logits: Float[XpArray, "B V"], skip: Int[XpArray, "B"], below: Float[XpArray, "B"], *, xp: ModuleType
) -> Bool[XpArray, "B V"]:
    """Which scores of the first token after an item may not be chosen: that of skip, where it is not likely enough.

    Then skip is the likeliest token where the rule `decide` keeps silent, and elsewhere the likeliest is another.

    Args:
        logits: of the next token.
        skip: id of the skip token; -1 for none.
        below: probability of skip below which it is not chosen; infinity never chooses it.
        xp: numpy or jax.numpy.
    """
    largest = logits.max(axis=-1)
    total = xp.exp(logits - largest[:, None]).sum(axis=-1)
    score = xp.take_along_axis(logits, xp.maximum(skip, 0)[:, None], axis=-1)[:, 0]
    unlikely = xp.exp(score - largest) / total < below
    return unlikely[:, None] & (xp.arange(logits.shape[-1]) == skip[:, None])


def drop_ratio(
    features: Float[XpArray, "N D"],
    before: Float[XpArray, "N D"] | None,
    *,
    xp: ModuleType,
    different_below: float = DIFFERENT_BELOW,
) -> Float[XpArray, ""] | float:
    """Share of a frame's features that say nothing new: their cosine with those at the same places before is high.

    Args:
        features: of the frame.
        before: of the frame before, None for the first, of which all is new.
        xp: numpy or jax.numpy.
        different_below: the bound on the cosine, above which a feature says nothing new.

    Returns:
        From 0 to 1. Nothing is similar to a feature of zeros.
    """
    if before is None:
        return 0.0
    norms = xp.linalg.norm(features, axis=-1) * xp.linalg.norm(before, axis=-1)
    cosine = (features * before).sum(axis=-1) / xp.where(norms > 0, norms, 1)
    return (cosine > different_below).mean()


def _check(rule: object, **least: float) -> None:
    for name, smallest in least.items():
        value = getattr(rule, name)
        if not smallest <= value < float("inf"):
            raise ValueError(f"{name} of {type(rule).__name__} must be at least {smallest}, got {value}")
