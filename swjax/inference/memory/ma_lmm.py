"""MA-LMM's choice (He et al., 2024, arXiv 2404.05726): what is like its neighbor in time at the same place goes.

The paper's bank of features merges the most similar two neighbors of each place into their mean, before a decoder that
was trained on such banks. Here, where a cache has keys with ids, the later of the two stays as it is, and the earlier
goes: of a run of like tokens the last is left. Likeness is of keys without their rotation, in each layer and key head.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from swjax.inference.memory.book import TEXT, Book, StoredKeys
from swjax.inference.memory.moved import turned
from swjax.inference.memory.scored import Scored, padded

NONE = -1


@dataclass(frozen=True)
class MALMM(Scored):
    """The newest frames, and sources whose keys are least like the next ones at their places."""

    def scores(self, book: Book, stored: StoredKeys, stays: Bool[Array, "#L #K P"]) -> Float[Array, "L K P"]:
        """Cosines with their sign changed; of what has no next one, more than all others.

        Args:
            book: gives the ids by which keys were rotated, and the place of each source in its frame.
            stored: keys of the sources; values are not looked at.
            stays: not looked at: the next one at a place may be one that stays.
        """
        ids = jnp.stack([padded(one, stored, fill=0) for one in book.ids])
        keys = turned(stored.padded_keys.astype(jnp.float32), -ids, stored.rotary)
        return -likeness_to_next(keys, padded(next_at_place(book.places), stored, fill=NONE))


def next_at_place(places: Int32[np.ndarray, "*L_K S"]) -> Int32[np.ndarray, "*L_K S"]:
    """Of each source in order of time, the index of the next one at its place; `NONE` of the last, and of text."""
    order = np.argsort(places, axis=-1, kind="stable")  # what is at one place stands together, in order of time
    at = np.take_along_axis(places, order, axis=-1)
    follows = np.zeros(places.shape, bool)
    follows[..., :-1] = (at[..., 1:] == at[..., :-1]) & (at[..., :-1] != TEXT)
    found = np.empty(places.shape, np.int32)
    np.put_along_axis(found, order, np.where(follows, np.roll(order, -1, axis=-1), NONE).astype(np.int32), axis=-1)
    return found


@jax.jit
def likeness_to_next(keys: Float[Array, "L K P H"], following: Int32[Array, "#L #K P"]) -> Float[Array, "L K P"]:
    """Cosine of each key with the one that follows it; -inf where there is `NONE`."""
    keys = keys / jnp.maximum(jnp.linalg.norm(keys, axis=-1, keepdims=True), 1e-12)
    following = jnp.broadcast_to(following, keys.shape[:3])
    likeness = (keys * jnp.take_along_axis(keys, jnp.maximum(following, 0)[..., None], axis=2)).sum(axis=-1)
    return jnp.where(following == NONE, -jnp.inf, likeness)
