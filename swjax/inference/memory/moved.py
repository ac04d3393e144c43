"""What stays is moved together: in a cache, on the device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from swjax.inference.memory.book import Moves, StoredKeys
from swjax.models.cache import KeyValueCache


def moved(cache: KeyValueCache, row: int, moves: Moves, origin: int) -> KeyValueCache:
    """A cache with keys and values of a row moved, all at once; the one given is used up.

    Args:
        cache: keys and values.
        row: the row.
        moves: which slot goes where, counted from the origin.
        origin: slot at which the stream's first source is stored.
    """
    index = np.broadcast_to(np.arange(cache.slots, dtype=np.int32), (*moves.source.shape[:-1], cache.slots)).copy()
    index[..., moves.target + origin] = moves.source + origin
    return _gather(cache, np.int32(row), index)


def stored(cache: KeyValueCache, row: int, slots: Int32[np.ndarray, "S"]) -> StoredKeys:
    """A copy of the keys and values of some slots of a row, counted from the cache's first."""
    return StoredKeys(*(x[:, row][:, :, slots] for x in cache))


@functools.partial(jax.jit, donate_argnums=0)
def _gather(cache: KeyValueCache, row: Array, index: Int32[Array, "L K S"]) -> KeyValueCache:
    return KeyValueCache(
        *(x.at[:, row].set(jnp.take_along_axis(x[:, row], index[..., None], axis=2, mode="clip")) for x in cache)
    )
