"""Efficient video sampling (EVS, 2025, arXiv 2510.14624), with a fixed share of each frame in the place of the video's.

A stream does not know its other frames, so the count is that of each frame; the first one stays whole, as there.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Bool

from swjax.streaming.arrays import XpArray
from swjax.streaming.dropping.fixed_share import FixedShare
from swjax.streaming.dropping.view import FrameView, likeness_to_previous, lowest


@dataclass(frozen=True)
class EVS(FixedShare):
    """The tokens that are least like what was at their place in the frame before."""

    def keep(self, view: FrameView) -> Bool[XpArray, "U"]:
        """So many; all where there is no frame before."""
        return ~view.has_previous | lowest(jnp.nan_to_num(likeness_to_previous(view)), view, self.share)
