"""A control: tokens drawn at random."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from swjax.inference.memory.book import Book, Kept, StoredKeys
from swjax.inference.memory.budget import Budget, kept_words
from swjax.inference.numbers import whole


@dataclass(frozen=True)
class Random(Budget):
    """The newest frame, and of all other tokens as many as the budget holds, each as likely.

    Attributes:
        seed: of what is drawn; with the newest frame's number it says all, so that a stream may be run again.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("a memory's seed", self.seed)

    def keep(self, book: Book, read: Callable[[], StoredKeys]) -> Kept:
        """Down to the low mark."""
        frames = book.frames
        if len(frames) <= self.sources:
            return Kept(np.arange(len(frames), dtype=np.int32), kept_words(self, book))
        stays = book.pinned | (frames == frames.max())
        others = np.flatnonzero(~stays)
        draw = np.random.default_rng((self.seed, int(frames.max())))
        stays[draw.choice(others, max(0, self.low - int(np.count_nonzero(stays))), replace=False)] = True
        return Kept(np.flatnonzero(stays).astype(np.int32), kept_words(self, book))
