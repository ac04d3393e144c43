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
        self._blocks: list[Block] = []
        self._vectors = np.zeros((0, 1, 1, 1), np.float32)
        self.stored = self.forgotten = self.step = 0
        self._newest: int | None = None
        self.asked: tuple[int, Float[np.ndarray, "L K H"]] | None = None

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def block_bytes(self) -> int:
        """Bytes of each block, its vector included."""
        if not self._blocks:
            return 0
        return sum(array.nbytes for array in self._blocks[0]) + self._vectors[0].nbytes

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
        self.stored += 1
        if self._blocks and self.bytes + self.block_bytes > self._limit:
            oldest = self.forgotten % len(self)
            self._blocks[oldest], self._vectors[oldest] = block, vector
            self.forgotten += 1
            return
        if len(self._vectors) == len(self):
            longer = np.zeros((max(16, 2 * len(self)), *vector.shape), np.float32)
            longer[: len(self)] = self._vectors.reshape(-1, *vector.shape)
            self._vectors = longer
        self._vectors[len(self)] = vector
        self._blocks.append(block)

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

    def __getitem__(self, index: int) -> Block:
        return self._blocks[index]
