"""What policies with a budget share: how many tokens may be stored, and which words stay."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from swjax.inference.memory.book import Book, Bounds
from swjax.inference.numbers import whole


@dataclass(frozen=True)
class Budget:
    """A budget of sources and of words. Of the words the first and the newest stay, whatever the policy.

    Once a mark is passed, all above a lower one is dropped: slots are moved together then, and not at every frame.

    Attributes:
        sources: tokens of the prompt and of frames that may be stored; when there are more, down to seven eighths.
        words: newest words that stay; dropped down to these when there are more than an eighth more.
        first_words: words from the beginning of the answer that stay beside them, and the assistant prefix.
    """

    sources: int = 4096
    words: int = 512
    first_words: int = 16

    def __post_init__(self) -> None:
        whole("a memory's sources", self.sources, least=2)
        whole("a memory's words", self.words, least=1)
        whole("a memory's first_words", self.first_words)

    @property
    def low(self) -> int:
        """Sources that stay when there are more than `sources`."""
        return self.sources - max(1, self.sources // 8)

    def bounds(self, frame_units: int, prompt: int) -> Bounds:
        """The most that may be stored."""
        return Bounds(self.sources, self.first_words + high_mark(self.words), self.low)

    def is_full(self, book: Book) -> bool:
        """Whether sources or words are more than their high marks."""
        return len(book.source_slots) > self.sources or has_too_many_words(self, book)


def high_mark(low: int) -> int:
    """The most that there may be before all above the low mark is dropped."""
    return low + max(1, low // 8)


def has_too_many_words(policy: Budget, book: Book) -> bool:
    """Whether words beside the first are more than their high mark."""
    return int(np.count_nonzero(book.words >= policy.first_words)) > high_mark(policy.words)


def kept_words(policy: Budget, book: Book) -> Int32[np.ndarray, "m"]:
    """The words that stay: the assistant prefix and the first, and the newest."""
    first = np.flatnonzero(book.words < policy.first_words)
    newer = np.flatnonzero(book.words >= policy.first_words)[-policy.words :]
    return np.concatenate([first, newer]).astype(np.int32)
