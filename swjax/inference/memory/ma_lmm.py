"""MA-LMM's choice (He et al., 2024, arXiv 2404.05726): what is like its neighbor in time at the same place goes.

The paper's bank of features merges the most similar two neighbors of each place into their mean, before a decoder that
was trained on such banks. Here, where a cache has keys with ids, the later of the two stays as it is, and the earlier
goes: of a run of like tokens the last is left. Likeness is of keys without their rotation, in each layer and key head.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from swjax.inference.memory.book import TEXT, Book, StoredKeys
from swjax.inference.memory.moved import turned
from swjax.inference.memory.scored import Scored, padded


@dataclass(frozen=True)
class MALMM(Scored):
    """The newest frames, and sources whose keys are least like the next ones at their places."""

    def scores(self, book: Book, stored: StoredKeys, stays: Bool[Array, "#L #K P"]) -> Float[Array, "L K P"]:
        """Cosines with their sign changed; of what has no next one, more than all others."""
        ids = jnp.stack([padded(one, stored, fill=0) for one in book.ids])
        keys = turned(stored.padded_keys.astype(jnp.float32), -ids, stored.rotary)
        return -likeness_to_next(keys, padded(book.places, stored, fill=TEXT))


@jax.jit
def likeness_to_next(keys: Float[Array, "L K P H"], places: Int32[Array, "#L #K P"]) -> Float[Array, "L K P"]:
    """Cosine of each key with the next one at the same place; -inf where there is none, and for text."""
    places = jnp.broadcast_to(places, keys.shape[:3])
    order = jnp.argsort(places, axis=-1, stable=True)  # what is at one place stands together, in order of time
    keys = jnp.take_along_axis(
        keys / jnp.maximum(jnp.linalg.norm(keys, axis=-1, keepdims=True), 1e-12), order[..., None], 2
    )
    at = jnp.take_along_axis(places, order, axis=-1)
    has_next = (at == jnp.roll(at, -1, axis=-1)) & (at >= 0) & (jnp.arange(at.shape[-1]) < at.shape[-1] - 1)
    likeness = jnp.where(has_next, (keys * jnp.roll(keys, -1, axis=2)).sum(axis=-1), -jnp.inf)
    return jnp.take_along_axis(likeness, jnp.argsort(order, axis=-1), axis=-1)
