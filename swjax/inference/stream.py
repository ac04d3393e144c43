"""A stream of a batched engine, as its user and the engine hold it."""

from dataclasses import dataclass, field
from typing import Any

from tokenizers.decoders import DecodeStream

from swjax.inference.events import EndReason
from swjax.inference.lane import Piece
from swjax.inference.scheduler import Scheduler, Tally
from swjax.inference.settings import StreamSettings


@dataclass(eq=False)
class Stream:
    """One stream of an engine; made by `BatchEngine.open`.

    Attributes:
        settings: how it is spoken about.
        answer: ids of the answer tokens spoken so far, without the end token.
        ended: why it has ended, None while it goes on.
        tally: what it has cost.
        fault: the error of its own at which it has ended, or will at the next step.
    """

    settings: StreamSettings
    answer: list[int]
    ended: EndReason | None
    tally: Tally
    _scheduler: Scheduler = field(repr=False)
    _tokenizer: Any = field(repr=False)
    _stops: frozenset[int] = field(repr=False)
    _opened_s: float = field(repr=False)
    _row: int = field(repr=False)
    _origin: int = field(repr=False)
    _places: list[int] = field(repr=False)
    fault: Exception | None = None
    _decoder: DecodeStream = field(repr=False, default_factory=lambda: DecodeStream(skip_special_tokens=True))
    _texts: list[str] = field(repr=False, default_factory=list)
    _held: list[tuple[int, Piece]] = field(repr=False, default_factory=list)

    @property
    def text(self) -> str:
        """The answer so far, up to the last whole character."""
        return "".join(self._texts)

    @property
    def backlog(self) -> int:
        """Frames that have arrived and wait."""
        return self._scheduler.backlog
