"""Blocks of keys and values in host memory, found again by what is asked. What is here grows, up to a limit."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int32


class Block(NamedTuple):
    """Neighboring sources of one stream.

    Attributes:
        keys, values: as they were in the cache.
        ids: by which the keys are turned, alike in all layers and key heads.
        set_back: by how many ids sources had been set back until then.
        frames, places: as in a book.
    """

    keys: Float[np.ndarray, "L K n H"]
    values: Float[np.ndarray, "L K n H"]
    ids: Int32[np.ndarray, "3 n"]
    set_back: Int32[np.ndarray, "3"]
    frames: Int32[np.ndarray, "n"]
    places: Int32[np.ndarray, "n"]


class Labels(NamedTuple):
    """Of the sources of some blocks, one after another: what a `Block` has, and `set_back` of each."""

    ids: Int32[np.ndarray, "3 L 1 n"]
    frames: Int32[np.ndarray, "L 1 n"]
    places: Int32[np.ndarray, "L 1 n"]
    set_back: Int32[np.ndarray, "3 L 1 n"]


class HostBlocks:
    """Blocks of as many sources each, in order of time, each with a vector in every layer and key head.

    Args:
        size: sources of a block.
        limit: bytes that all blocks may take; the oldest are forgotten beyond it. One is stored in any case.

    Attributes:
        size: as above.
        stored, forgotten: blocks that have been stored, and those of them that are gone.
        step: the fewest temporal ids from a block to the next that has later ones; 0 before there are two.
        asked: number of the question whose vector was used last, and that vector.
    """

    def __init__(self, size: int, limit: int):
        self.size, self._limit = size, limit
        self._pieces: list[tuple[np.ndarray, np.ndarray]] = []
        self._vectors, self._labels = np.zeros((0, 1, 1, 1), np.float32), np.zeros((0, 8, size), np.int32)
        self.stored = self.forgotten = self.step = 0
        self._newest: int | None = None
        self.asked: tuple[int, Float[np.ndarray, "L K H"]] | None = None

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def block_bytes(self) -> int:
        """Bytes of each block, its vector and its labels included."""
        if not self._pieces:
            return 0
        return sum(array.nbytes for array in (*self._pieces[0], self._vectors[0], self._labels[0]))

    @property
    def bytes(self) -> int:
        """Bytes of all blocks."""
        return len(self) * self.block_bytes

    def add(self, block: Block, vector: Float[np.ndarray, "L K H"]) -> None:
        """Store a block that is newer than all others, in the place of the oldest where there is no more room."""
        first = int(block.ids[0].min()) - int(block.set_back[0])
        if self._newest is not None and first > self._newest:
            self.step = min(self.step or first - self._newest, first - self._newest)
        self._newest = first
        at = len(self)
        if at and self.bytes + self.block_bytes > self._limit:
            at = self.forgotten % len(self)
            self.forgotten += 1
            self._pieces[at] = block.keys, block.values
        else:
            self._pieces.append((block.keys, block.values))
        self.stored += 1
        if at == len(self._vectors):
            self._vectors = _longer(self._vectors, vector.shape)
            self._labels = _longer(self._labels, self._labels.shape[1:])
        set_back = np.repeat(block.set_back[:, None], self.size, axis=1)
        self._vectors[at] = vector
        self._labels[at] = np.concatenate([block.ids, block.frames[None], block.places[None], set_back])

    def best(self, query: Float[np.ndarray, "L K H"], count: int) -> Int32[np.ndarray, "L n"]:
        """Of each layer the blocks whose vectors have the largest products with a query, in order of time.

        Args:
            query: of each layer; products are summed over key heads.
            count: how many are wanted; all if there are fewer.
        """
        scores = np.einsum("blkh,lkh->lb", self._vectors[: len(self)], query)
        found = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        # Where blocks have been forgotten, the oldest that is left stands behind the newest.
        begin = self.forgotten % len(self) if self.forgotten else 0
        age = (found - begin) % len(self)
        return np.take_along_axis(found, np.argsort(age, axis=1), axis=1).astype(np.int32)

    def labels(self, blocks: Int32[np.ndarray, "L b"]) -> Labels:
        """What some blocks, of each layer others, have in their places."""
        of = np.moveaxis(self._labels[blocks], 2, 0).reshape(8, len(blocks), 1, -1)
        return Labels(of[:3], of[3], of[4], of[5:])

    def piece(self, index: int) -> tuple[Float[np.ndarray, "L K n H"], Float[np.ndarray, "L K n H"]]:
        """Keys and values of a block."""
        return self._pieces[index]

    def __getitem__(self, index: int) -> Block:
        labels = self._labels[index]
        return Block(*self._pieces[index], labels[:3], labels[5:, 0], labels[3], labels[4])


def _longer(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The same with room for as many more."""
    more = np.zeros((max(16, len(values)), *shape), values.dtype)
    return np.concatenate([values.reshape(-1, *shape), more])
