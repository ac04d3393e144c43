"""The two-ended cache of keys and values.

Slots are addressed freely: sources are written from an origin to the right, targets from it to the left, so that both
grow without moving anything and the keys of a query stay one contiguous span. Heads stand before slots, so that what a
head sees lies in one piece and no kernel has to transpose anything.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, DTypeLike, Float, Int32

from swjax.attention import AttentionSharding, cache_axes
from swjax.models.config import TextConfig


class KeyValueCache(NamedTuple):
    """Keys and values of all layers: [layers, B, K, slots, H] each."""

    keys: Float[Array, "layers B K S H"]
    values: Float[Array, "layers B K S H"]

    @classmethod
    def empty(
        cls, config: TextConfig, *, batch: int, slots: int, dtype: DTypeLike = jnp.float32, copies: int = 1
    ) -> "KeyValueCache":
        """A cache of zeros, in which each key head stands so many times, for as many devices.

        Args:
            config: of the decoder.
            batch: rows.
            slots: of each row.
            dtype: of keys and values.
            copies: of each key head.
        """
        shape = (config.num_layers, batch, copies * config.num_kv_heads, slots, config.head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    @property
    def slots(self) -> int:
        """Number of slots."""
        return self.keys.shape[3]

    def grown(self, left: int, right: int) -> "KeyValueCache":
        """The same with empty slots added before the first and behind the last."""
        widths = ((0, 0), (0, 0), (0, 0), (left, right), (0, 0))
        return KeyValueCache(jnp.pad(self.keys, widths), jnp.pad(self.values, widths))

    def write(
        self,
        layer: Int32[Array, ""],
        runs: "Runs",
        keys: Float[Array, "B L k H"],
        values: Float[Array, "B L k H"],
        sharding: AttentionSharding | None = None,
    ) -> "KeyValueCache":
        """The same with keys and values of some tokens in one layer.

        Args:
            layer: its number.
            runs: where the tokens go.
            keys, values: of the tokens, of as many heads as the cache has or of fewer, which are repeated.
            sharding: how the cache is divided over a mesh, if it is.
        """
        copies = self.keys.shape[2] // keys.shape[2]
        new = [x.swapaxes(1, 2)[None].astype(self.keys.dtype) for x in (keys, values)]
        new = [jnp.repeat(x, copies, axis=2) for x in new] if copies > 1 else new
        write: Any = _write
        if sharding is not None:
            batch, heads = cache_axes(sharding)
            stored, of_rows = PartitionSpec(None, batch, heads), PartitionSpec(batch)
            write = jax.shard_map(
                _write,
                mesh=sharding.mesh,
                in_specs=(stored, stored, PartitionSpec(), of_rows),
                out_specs=stored,
                check_vma=False,
            )
        return KeyValueCache(*(write(old, x, jnp.asarray(layer), runs) for old, x in zip(self, new, strict=True)))


class Runs(NamedTuple):
    """Where tokens go: each row's windows of as many slots as there are tokens, and what of a window is written.

    A window is written in place. A scatter to single slots would be too on a CPU, but on a TPU it takes a layout of its
    own, to which the whole cache is copied in each layer.

    Attributes:
        first: first slot of each of W windows.
        turn: by how many places the tokens are turned before they go there.
        written: which slots of a window are written.
    """

    first: Int32[Array, "B W"]
    turn: Int32[Array, "B W"]
    written: Bool[Array, "B W L"]


def runs_of(slots: Int32[Array, "B L"], num_slots: int) -> Runs:
    """The runs of neighbouring slots, two a row at most, to which tokens go.

    Args:
        slots: of each token, in ascending order; those that are not in the cache are not written and stand last.
        num_slots: of the cache; at least L.
    """
    length = slots.shape[1]
    if length > num_slots:
        raise ValueError(f"{length} tokens cannot be written at once into a cache of {num_slots} slots")
    index = jnp.arange(length, dtype=jnp.int32)
    is_stored = (slots >= 0) & (slots < num_slots)
    origin = slots - index  # the same for all tokens of a run
    is_second = is_stored & (origin != origin[:, :1])
    members = jnp.stack([is_stored & ~is_second, is_second], axis=1)[:, : min(length, 2)]
    wanted = jnp.take_along_axis(origin, members.argmax(axis=-1), axis=1)
    # A window that would leave the cache is moved into it, and its tokens are turned the other way.
    first = jnp.clip(wanted, 0, num_slots - length)
    turn = first - wanted
    at = index + turn[..., None]
    written = jnp.take_along_axis(members, at % length, axis=-1) & (at >= 0) & (at < length)
    return Runs(first, turn % length, written)


def _write(
    cache: Float[Array, "layers B K S H"], new: Float[Array, "1 B K L H"], layer: Int32[Array, ""], runs: Runs
) -> Float[Array, "layers B K S H"]:
    batch, heads, length, width = new.shape[1:]
    twice = jnp.concatenate([new, new], axis=3) if length > 1 else new
    size = 1, 1, heads, length, width

    def write_row(row: Int32[Array, ""], cache: Array) -> Array:
        for window in range(runs.first.shape[1]):
            place = layer, row, 0, runs.first[row, window], 0
            tokens = jax.lax.dynamic_slice(twice, (0, row, 0, runs.turn[row, window], 0), size)
            old = jax.lax.dynamic_slice(cache, place, size)
            chosen = jnp.where(runs.written[row, window][:, None], tokens, old)
            cache = jax.lax.dynamic_update_slice(cache, chosen, place)
        return cache

    if batch == 1:
        return write_row(jnp.int32(0), cache)
    return jax.lax.fori_loop(0, batch, write_row, cache)
