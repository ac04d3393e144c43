"""Nothing is dropped: a stream ends where its row is full."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from swjax.inference.memory.book import Book, Kept, StoredKeys


@dataclass(frozen=True)
class KeepAll:
    """All that has been seen and said stays."""

    def is_full(self, book: Book) -> bool:
        """Never."""
        return False

    def keep(self, book: Book, read: Callable[[], StoredKeys]) -> Kept:
        """All of it."""
        return Kept(np.arange(len(book.source_slots)), np.arange(len(book.word_slots)))
