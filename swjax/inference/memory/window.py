"""The newest frames and words, beside the prompt and the first words.

As StreamingLLM (Xiao et al., 2023, arXiv 2309.17453) keeps its sinks: here the prompt with the question, the assistant
prefix and the first words. Ids are kept and keys stay rotated, so that nothing is computed again; a key that stays has
what it saw of those that are gone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from swjax.inference.memory.book import TEXT, Book, Kept, StoredKeys
from swjax.inference.numbers import whole


@dataclass(frozen=True)
class Window:
    """Text among the sources, the first words, the last frames and the last words.

    Slots are moved together once a mark is passed, an eighth above what stays, and not at every frame.

    Attributes:
        frames: frames that stay; dropped down to these when there are more than an eighth more.
        words: newest words that stay; dropped down to these when there are more than an eighth more.
        first_words: words from the beginning of the answer that stay beside them, and the assistant prefix.
    """

    frames: int = 64
    words: int = 512
    first_words: int = 16

    def __post_init__(self) -> None:
        whole("a window's frames", self.frames, least=1)
        whole("a window's words", self.words, least=1)
        whole("a window's first_words", self.first_words)

    def is_full(self, book: Book) -> bool:
        """Whether frames or words are more than their high marks."""
        frames = np.unique(book.frames[book.frames != TEXT])
        newer = np.count_nonzero(book.words >= self.first_words)
        return bool(len(frames) > high_mark(self.frames) or newer > high_mark(self.words))

    def keep(self, book: Book, read: Callable[[], StoredKeys]) -> Kept:
        """Down to the low marks."""
        newest = np.unique(book.frames[book.frames != TEXT])[-self.frames :]
        sources = np.flatnonzero((book.frames == TEXT) | np.isin(book.frames, newest))
        first = np.flatnonzero(book.words < self.first_words)
        newer = np.flatnonzero(book.words >= self.first_words)[-self.words :]
        return Kept(sources, np.concatenate([first, newer]))


def high_mark(low: int) -> int:
    """The most that there may be before all above the low mark is dropped."""
    return low + max(1, low // 8)
