"""What stays is moved together: in a cache, on the device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from swjax.inference.memory.book import Moves
from swjax.models.cache import KeyValueCache
from swjax.models.rotary import Rotary


def moved(cache: KeyValueCache, row: int, moves: Moves, origin: int, rotary: Rotary) -> KeyValueCache:
    """A cache with keys and values of a row moved, all at once, and keys turned; the one given is used up.

    Args:
        cache: keys and values.
        row: the row.
        moves: which slot goes where, counted from the origin.
        origin: slot at which the stream's first source is stored.
        rotary: by which ids turn keys.
    """
    index = np.broadcast_to(np.arange(cache.slots, dtype=np.int32), (*moves.source.shape[:-1], cache.slots)).copy()
    index[..., moves.target + origin] = moves.source + origin
    if moves.turn is None:
        return _gather(cache, np.int32(row), index)
    turn = np.zeros((3, cache.slots), np.int32)
    turn[:, moves.target + origin] = moves.turn
    return _gather_turned(cache, np.int32(row), index, turn, rotary)


@functools.partial(jax.jit, static_argnames="rotary")
def turned(
    keys: Float[Array, "layers K S H"], turn: Int32[Array, "3 S"] | Int32[Array, "3 #layers #K S"], rotary: Rotary
) -> Float[Array, "layers K S H"]:
    """Rotated keys as if their ids were others.

    Args:
        keys: as they are stored.
        turn: new ids less the old ones, of all layers and key heads alike or of each; ids with their sign changed take
            the rotation away.
        rotary: the model's.
    """
    turn = turn.reshape(3, *(1,) * (4 - turn.ndim), *turn.shape[1:])
    rotation = rotary(turn.reshape(3, -1, turn.shape[-1]))
    cos, sin = (one.reshape(*turn.shape[1:], -1) for one in rotation)
    first, second = jnp.split(keys.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(keys.dtype)


@functools.partial(jax.jit, donate_argnums=0, static_argnames="rotary")
def inserted(
    cache: KeyValueCache,
    row: Array,
    first: Array,
    count: Array,
    new: tuple[Float[Array, "L K P H"], Float[Array, "L K P H"]],
    turn: Int32[Array, "3 #L P"] | None,
    rotary: Rotary,
) -> KeyValueCache:
    """A cache in which the first `count` of some keys and values stand in a row; the one given is used up.

    Args:
        cache: keys and values.
        row: the row.
        first: slot of the first of them.
        count: how many of them there are.
        new: they, and what pads them.
        turn: by how many ids the keys are turned before, in each layer; None for none.
        rotary: by which ids turn keys.
    """
    if turn is not None:
        new = turned(new[0], turn[:, :, None], rotary), new[1]
    size = new[0].shape[2]
    at = jnp.minimum(first, cache.slots - size)  # a window that would leave the cache is moved into it
    index = at + jnp.arange(size)
    is_new = ((index >= first) & (index < first + count))[:, None]

    def put(old: Float[Array, "layers B K S H"], new: Float[Array, "layers K P H"]) -> Float[Array, "layers B K S H"]:
        where = (0, row, 0, at, 0)
        window = jax.lax.dynamic_slice(old, where, (len(old), 1, *new.shape[1:]))
        rolled = jnp.roll(new.astype(old.dtype), first - at, axis=2)[:, None]
        return jax.lax.dynamic_update_slice(old, jnp.where(is_new, rolled, window), where)

    return KeyValueCache(*(put(*pair) for pair in zip(cache, new, strict=True)))


@jax.jit
def stored(
    cache: KeyValueCache, row: Array, slots: Int32[Array, "P"]
) -> tuple[Float[Array, "layers K P H"], Float[Array, "layers K P H"]]:
    """A copy of the keys and values of some slots of a row, counted from the cache's first.

    Args:
        cache: keys and values of all rows.
        row: int32[], the row.
        slots: which, in any order; one may come several times.
    """
    keys, values = (x[:, row][:, :, slots] for x in cache)
    return keys, values


@functools.partial(jax.jit, donate_argnums=0)
def _gather(cache: KeyValueCache, row: Array, index: Int32[Array, "L K S"]) -> KeyValueCache:
    return KeyValueCache(
        *(x.at[:, row].set(jnp.take_along_axis(x[:, row], index[..., None], axis=2, mode="clip")) for x in cache)
    )


@functools.partial(jax.jit, donate_argnums=0, static_argnames="rotary")
def _gather_turned(
    cache: KeyValueCache, row: Array, index: Int32[Array, "L K S"], turn: Int32[Array, "3 S"], rotary: Rotary
) -> KeyValueCache:
    cache = _gather(cache, row, index)
    keys = turned(cache.keys[:, row], turn, rotary)
    still = (turn == 0).all(axis=0)[:, None]
    return cache._replace(keys=cache.keys.at[:, row].set(jnp.where(still, cache.keys[:, row], keys)))
