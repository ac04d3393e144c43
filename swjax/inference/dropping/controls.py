"""Controls: as many tokens as another rule keeps, whatever they show."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from swjax.inference.dropping.fixed_share import FixedShare
from swjax.inference.dropping.view import FrameView, lowest, share_of
from swjax.inference.numbers import whole


@dataclass(frozen=True)
class Random(FixedShare):
    """Tokens drawn at random.

    Attributes:
        seed: of what is drawn; with the frame's number it says all.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("the seed", self.seed)

    def keep(self, view: FrameView) -> Bool[Array, "U"]:
        """So many, each as likely."""
        key = jax.random.fold_in(jax.random.key(self.seed), view.number)
        return lowest(jax.random.uniform(key, view.exists.shape), view, self.share)


@dataclass(frozen=True)
class Uniform(FixedShare):
    """Tokens at equal distances, by rows."""

    def keep(self, view: FrameView) -> Bool[Array, "U"]:
        """So many."""
        count, index = share_of(view, self.share), jnp.arange(view.exists.shape[0])
        return (index + 1) * count // view.units > index * count // view.units
