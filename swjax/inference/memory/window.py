"""The newest frames and words, beside the prompt and the first words.

As StreamingLLM (Xiao et al., 2023, arXiv 2309.17453) keeps its sinks and StreamingVLM (Xu et al., 2025, arXiv
2510.09608) words longer than frames: here the prompt with the question, the assistant prefix and the first words are
the sinks. Keys stay rotated and ids are kept, unless asked otherwise, so that nothing is computed again; a key that
stays has what it saw of those that are gone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from swjax.inference.memory.anchor import check_positions
from swjax.inference.memory.book import TEXT, Book, Bounds, Kept, StoredKeys
from swjax.inference.memory.budget import Budget, has_too_many_words, high_mark, kept_words
from swjax.inference.numbers import LARGEST_COUNT, whole


@dataclass(frozen=True)
class Window(Budget):
    """The prompt and questions that are not answered, the first words, the last frames and the last words.

    Attributes:
        sources: as in `Budget`; 0 for 4,096, or for no such bound where `frames` is given.
        frames: frames that stay; dropped down to these when there are more than an eighth more. None for as many as
            `sources` holds.
        positions: what becomes of the ids of what stays: kept, contiguous, together or apart, as in
            `swjax.inference.memory.anchor`.
        reanchor_at: ids after which all are set back, together or apart.
    """

    sources: int = 0
    frames: int | None = None
    positions: str = "kept"
    reanchor_at: int = 16_384

    def __post_init__(self) -> None:
        if self.frames is not None:
            whole("a window's frames", self.frames, least=1)
        check_positions(self.positions, self.reanchor_at)
        if not self.sources:
            object.__setattr__(self, "sources", Budget.sources if self.frames is None else LARGEST_COUNT)
        super().__post_init__()

    def bounds(self, frame_units: int, prompt: int) -> Bounds:
        """The most that may be stored."""
        bounds = super().bounds(frame_units, prompt)
        if self.frames is None:
            return bounds
        return bounds._replace(sources=min(self.sources, prompt + high_mark(self.frames) * frame_units))

    def is_full(self, book: Book) -> bool:
        """Whether sources, frames or words are more than their high marks."""
        if len(book.source_slots) > self.sources or has_too_many_words(self, book):
            return True
        return self.frames is not None and len(np.unique(book.frames[book.frames > TEXT])) > high_mark(self.frames)

    def keep(self, book: Book, read: Callable[[], StoredKeys]) -> Kept:
        """Down to the low marks."""
        pinned = book.pinned
        stays = pinned | (np.arange(len(pinned)) >= self._begin(book.frames, pinned))
        return Kept(np.flatnonzero(stays).astype(np.int32), kept_words(self, book))

    def _begin(self, frames: Int32[np.ndarray, "S"], pinned: np.ndarray) -> int:
        """The first source of the newest frames that fit; the newest frame stays in any case."""
        others = np.flatnonzero(~pinned)
        if not len(others):
            return 0
        firsts = np.flatnonzero(np.diff(frames[others], prepend=TEXT))  # of each frame, or question between frames
        fits = int(np.searchsorted(firsts, len(others) - (self.low - int(np.count_nonzero(pinned)))))
        if self.frames is not None:
            of_frames = np.flatnonzero(frames[others[firsts]] > TEXT)[-self.frames :]
            fits = max(fits, *of_frames[:1].tolist(), 0)
        return int(others[firsts[min(fits, len(firsts) - 1)]])
