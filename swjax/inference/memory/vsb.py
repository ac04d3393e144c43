"""LiveVLM's vision sink buckets (2025, arXiv 2505.15269): attention mass, spread over time.

As in `streammem`, the words that have just been spoken take the place of the paper's last vision queries. The paper
does not say how many are taken whatever their bucket: `top`, a half by default.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int32

from swjax.inference.memory.book import Book, Kept, StoredKeys
from swjax.inference.memory.budget import kept_words
from swjax.inference.memory.scored import must_stay
from swjax.inference.memory.streammem import StreamMem, attention_mass
from swjax.inference.numbers import whole


@dataclass(frozen=True)
class VisionSinkBuckets(StreamMem):
    """The newest frames; then the sources with the most attention; then others, as many from each stretch of time.

    Attributes:
        buckets: stretches of time of equal length, from the oldest source to the newest.
        top: percent of what is left of the budget that is taken whatever its bucket.
    """

    buckets: int = 16
    top: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("vsb's buckets", self.buckets, least=1)
        whole("vsb's top", self.top, most=100)

    def keep(self, book: Book, read: Callable[[], StoredKeys]) -> Kept:
        """Down to the low mark; in layers unlike sources, in all as many."""
        count = len(book.source_slots)
        if count <= self.sources:
            return Kept(np.arange(count, dtype=np.int32), kept_words(self, book))
        mass = np.asarray(attention_mass(book, read(), self.proxy))[:, 0, :count]
        rows = [
            np.broadcast_to(one, (len(mass), *one.shape[-2:]))
            for one in (book.frames.reshape(-1, 1, count), must_stay(book, self.low, self.recent).reshape(-1, 1, count))
        ]
        kept = [
            spread(score, frames[0], stays[0], keep=self.low, buckets=self.buckets, top=self.top)
            for score, frames, stays in zip(mass, *rows, strict=True)
        ]
        return Kept(np.stack(kept)[:, None], kept_words(self, book))


def spread(
    score: Float[np.ndarray, "S"],
    frames: Int32[np.ndarray, "S"],
    stays: Bool[np.ndarray, "S"],
    *,
    keep: int,
    buckets: int,
    top: int,
) -> Int32[np.ndarray, "n"]:
    """Sources that are kept, ascending.

    Those with the highest scores are taken, and then from bucket after bucket one at a time, of those that have the
    fewest so far, its highest: no bucket gets more while another has fewer and something left.

    Args:
        score: of each source.
        frames: numbers of their frames.
        stays: those that are kept in any case.
        keep: how many are kept.
        buckets: stretches of time.
        top: percent of what is left that is taken by score alone.
    """
    others = np.flatnonzero(~stays)
    others = others[np.argsort(-score[others], kind="stable")]
    room = min(keep - int(np.count_nonzero(stays)), len(others))
    first = room * top // 100
    taken = others[:first].tolist()
    begin, end = frames[others].min(initial=0), frames[others].max(initial=0) + 1
    bucket = (frames - begin).astype(np.int64) * buckets // (end - begin)
    sizes = np.bincount(bucket[others[:first]], minlength=buckets)
    # The n-th of a bucket's others makes it as large as it was, and n: in order of these sizes, then of scores.
    rest = others[first:]
    nth = np.zeros(len(rest), np.int64)
    for number in range(buckets):
        mine = bucket[rest] == number
        nth[mine] = sizes[number] + np.arange(np.count_nonzero(mine))
    taken += rest[np.argsort(nth, kind="stable")[: room - first]].tolist()
    return np.sort(np.concatenate([np.flatnonzero(stays), np.array(taken, np.int64)])).astype(np.int32)
