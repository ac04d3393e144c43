"""The two-ended cache of keys and values.

Slots are addressed freely: sources are written from an origin to the right, targets from it to the left, so that both
grow without moving anything and the keys of a query stay one contiguous span. Heads stand before slots, so that what a
head sees lies in one piece and no kernel has to transpose anything.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from swjax.models.qwen2_5_vl.config import TextConfig


class KeyValueCache(NamedTuple):
    """Keys and values of all layers: [layers, B, K, slots, H] each."""

    keys: Float[Array, "layers B K S H"]
    values: Float[Array, "layers B K S H"]

    @classmethod
    def empty(cls, config: TextConfig, *, batch: int, slots: int, dtype: DTypeLike = jnp.float32) -> "KeyValueCache":
        """A cache of zeros."""
        shape = (config.num_layers, batch, config.num_kv_heads, slots, config.head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    @property
    def slots(self) -> int:
        """Number of slots."""
        return self.keys.shape[3]

    def grown(self, left: int, right: int) -> "KeyValueCache":
        """The same with empty slots added before the first and behind the last."""
        widths = ((0, 0), (0, 0), (0, 0), (left, right), (0, 0))
        return KeyValueCache(jnp.pad(self.keys, widths), jnp.pad(self.values, widths))
