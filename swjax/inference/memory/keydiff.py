"""KeyDiff (Park et al., 2025): in each layer and key head the keys that are least like their mean.

Rotation is taken away before, by the ids of each slot, so that keys are compared and not their positions.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from swjax.inference.memory.book import Book, StoredKeys
from swjax.inference.memory.moved import turned
from swjax.inference.memory.scored import Count, Scored, padded


@dataclass(frozen=True)
class KeyDiff(Scored):
    """The newest frames, and sources whose keys have the smallest cosine with the mean of all sources' keys."""

    def scores(self, book: Book, stored: StoredKeys, stays: Bool[Array, "#L #K P"]) -> Float[Array, "L K P"]:
        """Cosines with their sign changed.

        Args:
            book: gives the ids by which keys were rotated.
            stored: keys of the sources; values are not looked at.
            stays: not looked at: the mean is of all sources.
        """
        ids = jnp.stack([padded(one, stored, fill=0) for one in book.ids])
        keys = turned(stored.padded_keys.astype(jnp.float32), -ids, stored.rotary)
        return -_likeness_to_mean(keys, stored.count)


@jax.jit
def _likeness_to_mean(keys: Float[Array, "L K P H"], count: Count) -> Float[Array, "L K P"]:
    exists = (jnp.arange(keys.shape[2]) < count)[:, None]
    mean = jnp.where(exists, keys, 0).sum(axis=2, keepdims=True) / count
    norms = jnp.linalg.norm(keys, axis=-1) * jnp.linalg.norm(mean, axis=-1)
    return (keys * mean).sum(axis=-1) / jnp.maximum(norms, 1e-12)
