"""When a stream speaks, where a rule says it and not a schedule: what is known after each source item and word."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from swjax.data.decisions import find_decisions
from swjax.inference.numbers import shown
from swjax.streaming import Decide, DecisionTokens, DropTrigger, Moment, Speaking, StreamSpec, Verify, speaking_of
from swjax.streaming.tokens import Tokenizer

NO_DECISIONS = DecisionTokens(-2, -2)
"""Of models that do not decide: what a rule lets them say is as long as it may be."""

MOST_WORDS = 10_000
"""Words after an item that a rule may allow at most."""


class Deciding(NamedTuple):
    """How the next token may decide about silence.

    Attributes:
        skip, end: the tokens of decisions; -1 for none.
        below: probability of the skip token below which it is not chosen.
    """

    skip: int = -1
    end: int = -1
    below: float = 0.0


UNDECIDED = Deciding()
"""No token decides: a schedule does."""


def check_rule(rule: Speaking) -> int:
    """Look whether an engine can follow a rule.

    Args:
        rule: when to speak.

    Returns:
        The most words that it allows after an item.

    Raises:
        ValueError: it is no rule, measures what an engine does not, or knows no end.
    """
    if isinstance(rule, type) or not all(hasattr(rule, name) for name in ("needs", "speaks")):
        raise ValueError(f"speaking must be a rule, such as Decide() or speaking_of('decide'), got {shown(rule)}")
    if rule.needs and not isinstance(rule, Decide | DropTrigger | Verify):
        raise ValueError(f"{rule} needs {', '.join(sorted(rule.needs))}, which the engine does not measure")
    begun = Moment(0, 0.0, in_utterance=True, drop_ratio=0.0)
    most = next((words for words in range(MOST_WORDS + 1) if not rule.speaks(begun._replace(words=words))), None)
    if most is None:
        raise ValueError(f"{rule} allows more than {MOST_WORDS} words after a frame; bound them")
    return most


class Voice:
    """Whether another word may be spoken, by a rule.

    Args:
        rule: when to speak.
        decisions: the tokens that decide.
        on_pause: called when an utterance has ended.
    """

    def __init__(self, rule: Speaking, decisions: DecisionTokens, on_pause: Callable[[], None]):
        self._rule, self._tokens, self._on_pause = rule, decisions, on_pause
        self._now = Moment(-1, 0.0)

    def arrive(self, item: int, time_s: float | None, drop_ratio: float | None = None) -> None:
        """A source item has arrived: a frame, or a question, to which an answer begins.

        Args:
            item: its number.
            time_s: when it arrived; None for a question.
            drop_ratio: share of a frame's tokens that say nothing new, where it has been looked at.
        """
        self._now = self._now._replace(item=item, words=0, surprise=None)
        if time_s is None:
            self._now = self._now._replace(in_utterance=False, drop_ratio=0.0)
        else:
            self._now = self._now._replace(time_s=time_s, drop_ratio=drop_ratio)

    def measured(self, surprise: float) -> None:
        """What was said last has been read again with the newest frame."""
        self._now = self._now._replace(surprise=surprise)

    @property
    def in_utterance(self) -> bool:
        """Whether something has been begun, and neither finished nor interrupted."""
        return self._now.in_utterance

    def spoke(self, token: int) -> None:
        """A word has been spoken."""
        begun = token not in (self._tokens.skip, self._tokens.end)
        self._now = self._now._replace(words=self._now.words + 1, in_utterance=begun)
        if not self.may_speak:
            self._on_pause()

    @property
    def may_speak(self) -> bool:
        """Whether another word may be spoken before the next item; where tokens decide, the next one may be skip."""
        # Where it is measured, by the model's scores, is where the token is chosen (`Deciding`).
        if self._now.item < 0:
            return True  # whoever asks for words now is told that nothing has been seen
        return self._rule.speaks(self._now._replace(skip_probability=1.0, skip_is_likeliest=False))

    @property
    def has_begun(self) -> bool:
        """Whether something has been said since the newest item."""
        return self._now.words > 0

    @property
    def deciding(self) -> Deciding:
        """How the next token may decide: the first of an item, if nothing is being said."""
        if self._now.words or self._now.in_utterance:
            return Deciding(self._tokens.skip, self._tokens.end)
        below = self._rule.threshold if isinstance(self._rule, Decide) else math.inf
        return Deciding(self._tokens.skip, self._tokens.end, below)


def voice_of(record: StreamSpec, tokenizer: Tokenizer, rule: str | None = None) -> dict[str, Any]:
    """The fields of `StreamSettings` that say when a model speaks.

    Args:
        record: what it was trained to do.
        tokenizer: its tokenizer.
        rule: as `speaking_of` takes it; None for what it was trained to do.

    Raises:
        ValueError: there is no such rule, or the model was not trained to decide.
    """
    if rule is None and record.speaking == "wait_k":
        return {}
    speaking = Decide() if rule is None else speaking_of(rule)
    if record.speaking == "decide" or isinstance(speaking, Decide | Verify):
        return {"speaking_rule": speaking, "decisions": find_decisions(tokenizer)}
    return {"speaking_rule": speaking, "decisions": NO_DECISIONS}
