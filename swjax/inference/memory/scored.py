"""What policies share that keep the sources with the highest scores: what must stay, and the choice of the rest."""

import abc
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, Shaped, UInt32

from swjax.inference.memory.book import TEXT, Book, Kept, StoredKeys
from swjax.inference.memory.budget import Budget, kept_words
from swjax.inference.numbers import whole

Count = int | Int32[Array, ""]
"""A number, and what stands for it while a program is traced."""


@dataclass(frozen=True)
class Scored(Budget):
    """The prompt, open questions, the newest frames whole, and of all others those with the highest scores.

    Attributes:
        recent: percent of the budget for the newest frames, which stay whole; at least one does.
    """

    recent: int = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("a memory's recent", self.recent, most=100)

    @abc.abstractmethod
    def scores(self, book: Book, stored: StoredKeys, stays: Bool[Array, "#L #K P"]) -> Float[Array, "L #K P"]:
        """Of all sources, and of what pads them; what `stays` has no need of a score.

        Args:
            book: what is stored, S sources; its arrays are not padded.
            stored: keys and values of the sources. Padded ones are P = `stored.length` long.
            stays: which sources stay whatever their score; false for what pads them.

        Returns:
            Scores: sources with the highest stay. Where its axis of key heads is 1, all heads of a layer keep the same
            sources.
        """

    def keep(self, book: Book, read: Callable[[], StoredKeys]) -> Kept:
        """Down to the low mark; in layers and heads unlike sources, in all as many."""
        count = len(book.source_slots)
        if count <= self.sources:
            return Kept(np.arange(count, dtype=np.int32), kept_words(self, book))
        stored = read()
        stays = padded(must_stay(book, self.low, self.recent), stored, fill=False)
        chosen = np.asarray(best(self.scores(book, stored, stays), stays, count, self.low))
        return Kept(np.nonzero(chosen)[-1].reshape(*chosen.shape[:2], -1).astype(np.int32), kept_words(self, book))


def must_stay(book: Book, low: int, recent: int) -> Bool[np.ndarray, "*L_K S"]:
    """Which sources stay whatever their score: what is pinned, and the newest frames.

    Args:
        book: of the stream.
        low: sources that stay in all.
        recent: percent of these that are kept for the newest frames.
    """
    pinned, frames = book.pinned, book.frames
    one = frames.reshape(-1, frames.shape[-1])[0]
    numbers, counts = np.unique(one[one > TEXT], return_counts=True)
    room = (low - np.count_nonzero(pinned.reshape(-1, frames.shape[-1])[0])) * recent // 100
    newest = max(1, int(np.count_nonzero(np.cumsum(counts[::-1]) <= room)))
    return pinned | (frames >= numbers[-newest]) if len(numbers) else pinned


def padded(values: np.ndarray, stored: StoredKeys, *, fill: float) -> Shaped[Array, "L K P"]:
    """Values of sources, with axes of layers and key heads and as long as the keys that are padded.

    Args:
        values: [S], or [L, K, S] with axes of 1 where they are alike.
        stored: the keys.
        fill: what stands behind them.
    """
    values = values.reshape((1,) * (3 - values.ndim) + values.shape)
    behind = stored.length - values.shape[-1]
    return jnp.asarray(np.pad(values, ((0, 0), (0, 0), (0, behind)), constant_values=fill))


@jax.jit
def best(
    scores: Float[Array, "L K P"], stays: Bool[Array, "#L #K P"], count: Count, keep: Count
) -> Bool[Array, "L K P"]:
    """Which of the first `count` are kept: those that stay, and the highest scores; of equal ones the newer.

    Args:
        scores: of each source, padded.
        stays: which stay whatever their score.
        count: of sources.
        keep: how many stay.
    """
    exists = jnp.arange(scores.shape[-1]) < count
    return highest(jnp.where(exists, jnp.where(stays, jnp.inf, scores), -jnp.inf), keep)


def highest(scores: Float[Array, "*L_K P"], count: Count | Int32[Array, "*#L_K 1"]) -> Bool[Array, "*L_K P"]:
    """So many with the highest scores, of equal ones those that come later.

    The lowest of them is found bit by bit, which takes a tenth of the time that sorting takes on a CPU.
    """
    scores = jnp.where(scores == 0, 0, scores.astype(jnp.float32))  # zeros have two signs
    signed = jax.lax.bitcast_convert_type(scores, jnp.int32)
    ordered = jnp.where(signed < 0, ~signed, signed ^ jnp.int32(-(2**31))).astype(jnp.uint32)

    def add_bit(index: Array, least: UInt32[Array, "*L_K 1"]) -> UInt32[Array, "*L_K 1"]:
        higher = least | (jnp.uint32(1) << (31 - index).astype(jnp.uint32))
        return jnp.where((ordered >= higher).sum(axis=-1, keepdims=True) >= count, higher, least)

    least = jax.lax.fori_loop(0, 32, add_bit, jnp.zeros((*scores.shape[:-1], 1), jnp.uint32))
    above, equal = ordered > least, ordered == least
    later = jnp.cumsum(equal[..., ::-1], axis=-1)[..., ::-1]
    return above | (equal & (later <= count - above.sum(axis=-1, keepdims=True)))
