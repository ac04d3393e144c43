"""ReKV (Di et al., ICLR 2025, arXiv 2503.00540): nothing is forgotten; blocks come back from the host by the question.

The newest frames stay on the device. Those that leave go to the host in blocks, each with the mean of its keys without
rotation. When an answer begins, and whenever frames leave, every layer fetches the blocks whose means have the largest
products with the mean query of the question, run by itself; they stand between prompt and window in order of time.

With `positions` kept they come back at their own M-RoPE ids, bit by bit. With contiguous (the paper's, there for plain
ids) or apart, they are turned to stand right before the window, as far from one another as frames that follow one
another; a frame's height and width ids stay. What differs: frames that come later see what has been fetched, too,
because what a query sees is one span in all layers; the paper's frames see their window alone.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from swjax.inference.memory.anchor import check_positions
from swjax.inference.memory.book import TEXT, Book, Fetched, Kept, StoredKeys
from swjax.inference.memory.budget import Budget, kept_words
from swjax.inference.memory.host import Block, HostBlocks
from swjax.inference.memory.moved import turned
from swjax.inference.numbers import whole
from swjax.models.rotary import Rotary

MB = 1_000_000
AT_ONCE = 16
"""Blocks that are read at once: so many, whatever leaves, so that one program serves all."""


@dataclass(frozen=True)
class ReKV(Budget):
    """The newest frames, and of all others the blocks that the question asks for.

    Attributes:
        recent: percent of the budget for the newest frames, of which at least one stays; the rest is for blocks.
        block: tokens of a block; 0 for those of a frame, the largest that leaves first.
        host_mb: megabytes of host memory that a stream's blocks may take; beyond them the oldest are forgotten.
        proxy: newest words that are run behind the question, and ask with it.
        positions, reanchor_at: as of a window; see above for blocks.
    """

    recent: int = 50
    block: int = 0
    host_mb: int = 4096
    proxy: int = 0
    positions: str = "kept"
    reanchor_at: int = 16_384

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("rekv's recent", self.recent, most=100)
        whole("rekv's block", self.block, most=max(1, self.sources // 8))
        whole("rekv's host_mb", self.host_mb, least=1)
        whole("rekv's proxy", self.proxy)
        check_positions(self.positions, self.reanchor_at)

    @property
    def fetches(self) -> bool:
        """What is asked changes what is to be kept."""
        return True

    def keep(self, book: Book, read: Callable[[], StoredKeys]) -> Kept:
        """Down to the low mark; in each layer with other blocks, in all with as many."""
        count, host = len(book.source_slots), book.host
        is_new = host is not None and (host.asked is None or host.asked[0] != book.asking)
        if count <= self.sources and not is_new:
            return Kept(np.arange(count, dtype=np.int32), kept_words(self, book))
        one = book.frames.reshape(-1, count)[0]
        is_fetched = np.zeros(count, bool)
        is_fetched[slice(*book.fetched)] = True
        pinned = book.pinned.reshape(-1, count)[0] & ~is_fetched
        window = np.flatnonzero(~pinned & ~is_fetched)
        room = self.low - int(np.count_nonzero(pinned))
        stored = read()
        if count > self.sources:
            window = self._leave(book, stored, one, window, room * self.recent // 100)
        stays = np.sort(np.concatenate([np.flatnonzero(pinned), window])).astype(np.int32)
        words = kept_words(self, book)
        return Kept(stays, words, self._fetch(book, stored, stays, words, room - len(window)))

    def _leave(
        self, book: Book, stored: StoredKeys, frames: Int32[np.ndarray, "S"], window: np.ndarray, room: int
    ) -> Int[np.ndarray, "n"]:
        """Whole blocks of the oldest frames go to the host; what stays of the window."""
        begins = np.flatnonzero(np.diff(frames[window], prepend=TEXT - 1))
        begin = next((one for one in begins.tolist() if len(window) - one <= room), int(begins[-1]))
        leaving = window[:begin][frames[window[:begin]] > TEXT]  # a question that is answered is not stored
        if book.host is None and len(leaving):
            largest = int(np.unique(frames[leaving], return_counts=True)[1].max())
            book.host = HostBlocks(self.block or largest, self.host_mb * MB)
        if book.host is None:
            return window[begin:]
        size, ids = book.host.size, book.ids.reshape(3, -1, len(frames))[:, 0]
        places = book.places.reshape(-1, len(frames))[0]
        blocks = leaving[: len(leaving) // size * size].reshape(-1, size)
        for first in range(0, len(blocks), AT_ONCE):
            some = blocks[first : first + AT_ONCE]
            index = np.resize(some, (AT_ONCE, size))
            made = _blocks(*stored.take(index.ravel()), ids[:, index.ravel()], AT_ONCE, stored.rotary)
            found = [np.asarray(one) for one in made]
            for number, at in enumerate(some):
                # Copies, as a view of what lies on a CPU would keep all of it there.
                keys, values, vector = (np.array(one[number]) for one in found)
                block = Block(keys, values, ids[:, at], book.set_back.astype(np.int32), frames[at], places[at])
                book.host.add(block, vector)
        return np.concatenate([leaving[blocks.size :], window[begin:]])

    def _fetch(self, book: Book, stored: StoredKeys, stays: np.ndarray, words: np.ndarray, room: int) -> Fetched | None:
        """The blocks that are asked for, as many as there is room for."""
        host = book.host
        if host is None or not len(host):
            return None
        if self.proxy or host.asked is None or host.asked[0] != book.asking:
            spoken = book.word_tokens[len(book.word_tokens) - min(self.proxy, len(book.word_tokens)) :]
            text = np.concatenate([book.questions[book.asking], spoken]).astype(np.int32)
            host.asked = book.asking, np.asarray(stored.queries(text))
        most = self.low * (100 - self.recent) // 100 // host.size
        count = min(room // host.size, most, len(host))
        if count < 1:
            return None
        query = host.asked[1]
        copies = host.piece(0)[0].shape[1] // query.shape[1]  # on a mesh each key head may stand more than once
        best = host.best(np.repeat(query, copies, axis=1), count)
        keys, values = (np.zeros((*x.shape[:2], most * host.size, x.shape[3]), x.dtype) for x in host.piece(0))
        for index, chosen in enumerate(best.T.tolist()):
            at = slice(index * host.size, (index + 1) * host.size)
            for layer, one in enumerate(chosen):
                of_block = host.piece(one)
                keys[layer, :, at], values[layer, :, at] = of_block[0][layer], of_block[1][layer]
        labels = host.labels(best)
        ids = labels.ids + (book.set_back.astype(np.int32)[:, None, None, None] - labels.set_back)
        if self.positions in ("contiguous", "apart"):
            ids = ids + self._to_window(book, stays, words, ids)
        return Fetched(book.prompt, keys, values, labels.ids, ids, labels.frames, labels.places)

    def _to_window(
        self,
        book: Book,
        stays: Int32[np.ndarray, "m"],
        words: Int32[np.ndarray, "w"],
        ids: Int32[np.ndarray, "3 L 1 n"],
    ) -> Int32[np.ndarray, "3 L 1 n"]:
        """By how many ids blocks are to be turned so that they stand right before the window."""
        host = book.host
        assert host is not None, "something is fetched"
        after = book.ids.reshape(3, -1, len(book.source_slots))[0, 0, stays[stays >= book.prompt]]
        if book.is_joint:
            after = np.concatenate([after, book.word_ids[0, words[book.words[words] >= self.first_words]]])
        firsts = ids[0, :, 0].reshape(ids.shape[1], -1, host.size).min(axis=-1)
        rank = np.cumsum(np.diff(firsts, axis=1, prepend=firsts[:, :1]) > 0, axis=1)
        target = int(after.min()) - (rank[:, -1:] + 1 - rank) * max(1, host.step)
        turn = np.repeat(target - firsts, host.size, axis=1)[:, None].astype(np.int32)
        others = turn if book.is_joint else np.zeros_like(turn)
        return np.stack([turn, others, others])


@functools.partial(jax.jit, static_argnums=(3, 4))
def _blocks(
    keys: Float[Array, "L K S H"],
    values: Float[Array, "L K S H"],
    ids: Int32[Array, "3 S"],
    count: int,
    rotary: Rotary,
) -> tuple[Float[Array, "b L K n H"], Float[Array, "b L K n H"], Float[Array, "b L K H"]]:
    """Keys and values by blocks, and the mean of each block's keys without rotation."""
    plain = turned(keys.astype(jnp.float32), -ids, rotary)

    def blocks(x: Float[Array, "L K S H"]) -> Float[Array, "b L K n H"]:
        return jnp.moveaxis(x.reshape(*x.shape[:2], count, -1, x.shape[-1]), 2, 0)

    return blocks(keys), blocks(values), blocks(plain).mean(axis=3)
