"""Arrays that stay on disk until a part of them is asked for, and how they get onto devices part by part.

A checkpoint is a mapping from parameter paths to `StoredArray`, whatever its format: opening one costs no memory, and
whoever reads it decides how much of it is in memory at a time.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

Block = tuple[slice, ...]
"""One slice an axis, each with a start and a stop."""

# Parameters below this go to their devices in one piece.
_SMALL_BYTES = 32 * 2**20

# Rows below this are not worth a reading of their own.
_TINY_BYTES = 4 * 2**20

# Blocks that are read at the same time, one for each chip of a TPU host.
_READERS = 8


@dataclass(frozen=True)
class StoredArray:
    """An array on disk.

    Attributes:
        shape, dtype: of the whole.
        read: reads a block: one slice an axis, with start and stop. The result may be a strided view.
        rows: how many rows of the leading axis are best read together.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Block], np.ndarray]
    rows: int

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """Reads rows of the leading axis, whole in the others."""
        return self.read((slice(start, stop), *(slice(0, size) for size in self.shape[1:])))

    def astype(self, dtype: DTypeLike) -> "StoredArray":
        """The same, rounded to another dtype when it is read."""
        return StoredArray(self.shape, np.dtype(dtype), lambda block: self.read(block).astype(dtype), self.rows)

    def row_ranges(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows that are best read together, in order; none of them tiny."""
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        step = self.rows * max(1, _TINY_BYTES // max(1, self.rows * row_bytes))
        for start in range(0, self.shape[0], step):
            yield start, min(start + step, self.shape[0])


def in_memory(array: np.ndarray) -> StoredArray:
    """An array that is read already, as one that is stored."""
    return StoredArray(array.shape, array.dtype, lambda block: array[block], array.shape[0])


def place(array: StoredArray, sharding: jax.sharding.Sharding | None, dtype: DTypeLike) -> jax.Array:
    """Reads an array onto devices.

    A process reads only what its own devices hold, and of that only one range of rows at a time where the leading axis
    is not sharded: host memory does not grow with the array.

    Args:
        array: what to read.
        sharding: where each part goes, over the devices of one or several processes; None leaves the array on the
            default device, free to be moved.
        dtype: of the result.
    """
    bytes_in_all = np.dtype(dtype).itemsize * math.prod(array.shape)
    rows_in_shard = array.shape[0] if sharding is None else sharding.shard_shape(array.shape)[0]
    if array.rows >= array.shape[0] or rows_in_shard != array.shape[0] or bytes_in_all <= _SMALL_BYTES:
        return _place_block(array, 0, array.shape[0], sharding, dtype)
    whole = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=sharding)(array.shape, np.dtype(dtype))
    for start, stop in array.row_ranges():
        piece = _place_block(array, start, stop, sharding, dtype)
        # Or the host would read ahead of the devices, and all that waits for them would pile up.
        whole = _write_rows(whole.block_until_ready(), piece, start)
    return whole.block_until_ready()


def _place_block(
    array: StoredArray, start: int, stop: int, sharding: jax.sharding.Sharding | None, dtype: DTypeLike
) -> jax.Array:
    if sharding is None:
        return jnp.asarray(array.read_rows(start, stop).astype(dtype, copy=False))
    shape = (stop - start, *array.shape[1:])

    def bounds(index: Any) -> tuple[tuple[int, int], ...]:
        return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))

    def read(wanted: tuple[tuple[int, int], ...]) -> np.ndarray:
        rows, *others = (slice(*pair) for pair in wanted)
        block = array.read((slice(rows.start + start, rows.stop + start), *others))
        return block.astype(dtype, copy=False)

    # Devices that hold the same are given the same; those that do not are read for at the same time.
    wanted = list(dict.fromkeys(bounds(index) for index in sharding.addressable_devices_indices_map(shape).values()))
    with ThreadPoolExecutor(_READERS) as pool:
        blocks = dict(zip(wanted, pool.map(read, wanted), strict=True))
    return jax.make_array_from_callback(shape, sharding, lambda index: blocks[bounds(index)], dtype=np.dtype(dtype))


def _update(whole: jax.Array, piece: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, piece, start, axis=0)


_write_rows = jax.jit(_update, donate_argnums=0)
