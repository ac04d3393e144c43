"""What is done to one row of a lane's arrays, on the device."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from swjax.models.cache import KeyValueCache


class Piece(NamedTuple):
    """Keys and values of some slots of one row: [layers, K, n, H] each."""

    keys: Float[Array, "layers K n H"]
    values: Float[Array, "layers K n H"]


@functools.partial(jax.jit, donate_argnums=(0, 1))
def clean(cache: KeyValueCache, said: Bool[Array, "B V"], row: Array) -> tuple[KeyValueCache, Bool[Array, "B V"]]:
    """A row of zeros, in which nothing has been said.

    Args:
        cache: keys and values of all rows; used up.
        said: which tokens have been said in each row; used up.
        row: int32[], the row.

    Returns:
        Both, with that row cleaned.
    """
    return KeyValueCache(*(x.at[:, row].set(0) for x in cache)), said.at[row].set(False)


@functools.partial(jax.jit, donate_argnums=0)
def remember(said: Bool[Array, "B V"], row: Array, words: Int32[Array, "S"]) -> Bool[Array, "B V"]:
    """A row in which some words have been said, and no others; ids beyond the vocabulary pad them.

    Args:
        said: which tokens have been said in each row; used up.
        row: int32[], the row.
        words: token ids.
    """
    return said.at[row].set(jnp.zeros(said.shape[1], bool).at[words].set(True, mode="drop"))


@jax.jit
def features(inbox: Float[Array, "B R U D"], row: Array, cell: Array) -> Float[Array, "U D"]:
    """A copy of what a cell of a row's inbox holds.

    Args:
        inbox: features of the frames that wait: rows, cells of a row, tokens of a frame, features of a token.
        row, cell: int32[] each.
    """
    return inbox[row, cell]


@functools.partial(jax.jit, static_argnums=3)
def take(cache: KeyValueCache, row: Array, first: Array, count: int) -> Piece:
    """A copy of some slots of a row.

    Args:
        cache: keys and values of all rows.
        row: int32[], the row.
        first: int32[], the first slot. Where slots would leave the cache, the last `count` are taken.
        count: of slots; compiled for each.
    """
    layers, _, heads, _, width = cache.keys.shape
    where, size = (0, row, 0, first, 0), (layers, 1, heads, count, width)
    return Piece(*(jax.lax.dynamic_slice(x, where, size)[:, 0] for x in cache))


@functools.partial(jax.jit, donate_argnums=0)
def store(cache: KeyValueCache, row: Array, first: Array, piece: Piece) -> KeyValueCache:
    """Store keys and values in slots of a row.

    Args:
        cache: keys and values of all rows; used up.
        row: int32[], the row.
        first: int32[], slot of the first of them. Where they would leave the cache, they go to its last slots.
        piece: keys and values; cast to the dtype of the cache.
    """
    pairs = zip(cache, piece, strict=True)
    where = (0, row, 0, first, 0)
    return KeyValueCache(
        *(jax.lax.dynamic_update_slice(old, new[:, None].astype(old.dtype), where) for old, new in pairs)
    )
