"""InfiniPot-V (Kim et al., NeurIPS 2025): temporal redundancy of keys, and norms of values, in each layer and key head.

Differences: a frame's number and a token's place in it are kept, so that places are compared with their own also after
the first compaction, when heads hold unlike tokens; and norms are not pooled over neighbors.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from swjax.inference.memory.book import TEXT, Book, StoredKeys
from swjax.inference.memory.scored import Count, Scored, highest, padded
from swjax.inference.numbers import whole


@dataclass(frozen=True)
class InfiniPotV(Scored):
    """The newest frames; then sources whose keys are least like those at the same place of these; then large values.

    Attributes:
        alpha: percent of what is left of the budget for unlike keys; the rest is for values of large norm.
    """

    alpha: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("infinipot_v's alpha", self.alpha, most=100)

    def scores(self, book: Book, stored: StoredKeys, stays: Bool[Array, "#L #K P"]) -> Float[Array, "L K P"]:
        """Norms of values, and above all of them the keys that are chosen for being unlike.

        Args:
            book: gives the place of each source in its frame.
            stored: keys and values of the sources.
            stays: which sources stay in any case: keys are compared with these.
        """
        places = padded(book.places, stored, fill=TEXT)
        return _scores(
            stored.padded_keys, stored.padded_values, places, stays, stored.count, self.low, self.alpha / 100
        )


@jax.jit
def _scores(
    keys: Float[Array, "L K P H"],
    values: Float[Array, "L K P H"],
    places: Int32[Array, "#L #K P"],
    stays: Bool[Array, "#L #K P"],
    count: Count,
    keep: Count,
    alpha: float | Float[Array, ""],
) -> Float[Array, "L K P"]:
    shape = keys.shape[:3]
    places, stays = jnp.broadcast_to(places, shape), jnp.broadcast_to(stays, shape)
    exists = jnp.arange(shape[-1]) < count
    unlike = jnp.where(exists & ~stays, -likeness(keys, places, stays & exists), -jnp.inf)
    room = keep - (stays & exists).sum(axis=-1, keepdims=True)
    chosen = highest(unlike, jnp.floor(alpha * room).astype(jnp.int32)) & (room > 0)
    norms = jnp.linalg.norm(values.astype(jnp.float32), axis=-1)
    return jnp.where(chosen, norms.max(axis=-1, keepdims=True) + 1, norms)


def likeness(
    keys: Float[Array, "L K P H"], places: Int32[Array, "L K P"], of: Bool[Array, "L K P"]
) -> Float[Array, "L K P"]:
    """Mean cosine of each key with those of some tokens at the same place of their frames; 0 where there is none.

    Args:
        keys: of all sources.
        places: of each in its frame; below 0 for text.
        of: which tokens they are compared with.
    """
    keys = keys.astype(jnp.float32)
    keys = keys / jnp.maximum(jnp.linalg.norm(keys, axis=-1, keepdims=True), 1e-12)
    layers, heads = jnp.ogrid[: keys.shape[0], : keys.shape[1]]
    where = layers[..., None], heads[..., None], jnp.where(places < 0, keys.shape[2], places)
    sums = jnp.zeros_like(keys).at[where].add(jnp.where(of[..., None], keys, 0), mode="drop")
    counts = jnp.zeros(of.shape, jnp.float32).at[where].add(of, mode="drop")
    dots = jnp.einsum("lkph,lkph->lkp", keys, sums.at[where].get(mode="fill", fill_value=0))
    return dots / jnp.maximum(counts.at[where].get(mode="fill", fill_value=0), 1)
