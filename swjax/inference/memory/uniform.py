"""A control: frames thinned out, the older the more."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from swjax.inference.memory.book import Book, Kept, StoredKeys
from swjax.inference.memory.budget import Budget, kept_words


@dataclass(frozen=True)
class Uniform(Budget):
    """Every second frame of the older half is dropped, again and again, until what stays fits into the budget."""

    def keep(self, book: Book, read: Callable[[], StoredKeys]) -> Kept:
        """Down to the low mark; the newest frame stays in any case."""
        pinned, frames = book.pinned, book.frames
        labels, first, counts = np.unique(frames[~pinned], return_index=True, return_counts=True)
        in_time = np.argsort(first)
        items, sizes = list(labels[in_time]), dict(zip(labels.tolist(), counts.tolist(), strict=True))
        room = self.low if len(frames) > self.sources else len(frames)
        while len(items) > 1 and np.count_nonzero(pinned) + sum(sizes[int(item)] for item in items) > room:
            del items[: max(1, len(items) // 2) : 2]
        return Kept(np.flatnonzero(pinned | np.isin(frames, items)).astype(np.int32), kept_words(self, book))
