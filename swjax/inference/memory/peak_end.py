"""LiveStar's peak-end memory (2025): the newest frames, and those that what was said fits best.

A frame's surprise is the mean surprise of the words that were said after it, run again with what they saw; where
nothing was said, that of the frame before, whose words are the ones that still hold. The paper halves groups of frames
that share a caption; here, where every frame may have words, the frames of highest surprise go first. (In `interleave`,
where words stand behind sources once something has been dropped, those that are run again see newer frames too.)
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from swjax.inference.memory.book import TEXT, Book, Kept, StoredKeys
from swjax.inference.memory.budget import Budget, kept_words
from swjax.inference.memory.scored import must_stay
from swjax.inference.numbers import whole

WORDS = 40
"""Words that are run again at once."""


@dataclass(frozen=True)
class PeakEnd(Budget):
    """Whole frames: the newest, and of the others those of the lowest surprise.

    Attributes:
        recent: percent of the budget for the newest frames; at least one stays.
    """

    recent: int = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("a memory's recent", self.recent, most=100)

    def keep(self, book: Book, read: Callable[[], StoredKeys]) -> Kept:
        """Down to the low mark."""
        frames = book.frames
        if len(frames) <= self.sources:
            return Kept(np.arange(len(frames), dtype=np.int32), kept_words(self, book))
        note_surprise(book, read())
        stays = must_stay(book, self.low, self.recent)
        labels, first, counts = np.unique(frames[~stays], return_index=True, return_counts=True)
        in_time = np.argsort(first)
        held = float(np.mean(list(book.notes.values()))) if book.notes else 0.0
        surprise: list[float] = []
        for label in labels[in_time]:
            held = book.notes.get(int(label), held)
            surprise.append(held)
        room = self.low - int(np.count_nonzero(stays))
        # The lowest first, and of equal ones the newest.
        order = in_time[np.lexsort((-np.arange(len(surprise)), np.array(surprise)))]
        fits = labels[order[np.cumsum(counts[order]) <= room]]
        sources = np.flatnonzero(stays | np.isin(frames, fits)).astype(np.int32)
        kept = set(frames[sources].tolist())
        for frame in [frame for frame in book.notes if frame not in kept]:
            del book.notes[frame]
        return Kept(sources, kept_words(self, book))


def note_surprise(book: Book, stored: StoredKeys) -> None:
    """Note the surprise of all frames whose words have been stored since."""
    of = book.word_after[:-1]
    pairs = np.flatnonzero((book.said[1:] >= 0) & np.isin(of, _unnoted(book)))
    found: dict[int, list[float]] = {}
    for begin in range(0, len(pairs), WORDS):
        some = pairs[begin : begin + WORDS]
        # Always as many, so that one program serves all.
        words = np.pad(some, (0, WORDS - len(some)), mode="edge")
        tokens, following = book.word_tokens[words], book.word_tokens[words + 1]
        saw = np.array([_sources_until(book.frames, frame) for frame in of[words]], np.int32)
        values = stored.surprise(tokens, following, book.word_ids[:, words], book.word_slots[words], saw)
        for frame, value in zip(of[some].tolist(), np.asarray(values).tolist(), strict=False):
            found.setdefault(frame, []).append(value)
    book.notes.update({frame: float(np.mean(values)) for frame, values in found.items()})


def _unnoted(book: Book) -> list[int]:
    """Frames that are stored and have no note, and all of whose words are stored: a later frame has one."""
    frames = np.unique(book.frames[book.frames > TEXT])
    last = int(book.word_after.max(initial=TEXT))
    return [frame for frame in frames.tolist() if frame < last and frame not in book.notes]


def _sources_until(frames: np.ndarray, frame: int) -> int:
    """How many sources have come up to a frame."""
    later = np.flatnonzero(frames > frame)
    return int(later[0]) if len(later) else len(frames)
