"""Which keys a block of queries has to do with, and which blocks of queries a block of keys: for blockwise kernels."""

import jax.numpy as jnp
from jaxtyping import Array, Int32


def union(start: Int32[Array, "*B X"], stop: Int32[Array, "*B X"], num_keys: int) -> tuple[Array, Array]:
    """The smallest range [low, high) with all spans along the last axis; [0, 0) if all are empty.

    Args:
        start, stop: edges of the spans; one is empty where start >= stop.
        num_keys: S, which no edge is above.

    Returns:
        low and high, int32[*B] each.
    """
    is_empty = start >= stop
    high = jnp.where(is_empty, 0, stop).max(axis=-1)
    return jnp.minimum(jnp.where(is_empty, num_keys, start).min(axis=-1), high), high


def touching_blocks(
    low: Int32[Array, "B blocks"], high: Int32[Array, "B blocks"], *, width: int, num_keys: int
) -> tuple[Int32[Array, "B lists"], Int32[Array, "B lists blocks"]]:
    """For every `width` keys, how many blocks of queries reach any of them, and which: these first, in order.

    Args:
        low, high: union of the spans of each block of queries.
        width: keys to a list.
        num_keys: S.
    """
    begin = jnp.arange(-(-num_keys // width), dtype=jnp.int32)[:, None] * width
    touches = (low[:, None] < begin + width) & (high[:, None] > begin)
    touching = jnp.argsort(~touches, axis=-1, stable=True).astype(jnp.int32)
    return touches.sum(axis=-1, dtype=jnp.int32), touching
