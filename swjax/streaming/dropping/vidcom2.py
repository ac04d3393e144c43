"""VidCom2's score, as the pruner of STC (2025, arXiv 2512.00891) streams it: what is far from two anchors stays.

The anchors are the mean of the frame and the mean of all frames before it, of which a running mean is all that is kept.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Bool, Float

from swjax.streaming.arrays import XpArray
from swjax.streaming.dropping.fixed_share import FixedShare
from swjax.streaming.dropping.view import SMALLEST_NORM, FrameView, lowest

WIDTHS = tuple(2.0**power for power in range(-3, 2))


@dataclass(frozen=True)
class VidCom2(FixedShare):
    """The tokens with the smallest sum of Gaussians around both anchors, on the half of channels that vary least."""

    def keep(self, view: FrameView) -> Bool[XpArray, "U"]:
        """So many."""
        features = view.features.astype(jnp.float32)
        weights = view.exists[:, None].astype(jnp.float32)
        mean = (features * weights).sum(axis=0) / view.units
        variance = ((features - mean) ** 2 * weights).sum(axis=0)
        steady = jnp.argsort(variance, stable=True)[: features.shape[1] // 2]
        tokens = _unit(features[:, steady])
        scores = _closeness(tokens, (tokens * weights).sum(axis=0) / view.units)
        past = _closeness(tokens, _unit(view.mean[steady]))
        return lowest(scores + jnp.where(view.number > 0, past, 0), view, self.share)


def _unit(x: Float[XpArray, "*n C"]) -> Float[XpArray, "*n C"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), SMALLEST_NORM)


def _closeness(tokens: Float[XpArray, "U C"], anchor: Float[XpArray, "C"]) -> Float[XpArray, "U"]:
    squares = ((tokens - anchor) ** 2).sum(axis=-1)
    return sum((jnp.exp(-squares / (2 * width)) for width in WIDTHS), jnp.zeros_like(squares))
