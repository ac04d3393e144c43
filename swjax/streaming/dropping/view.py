"""What a rule of dropping is shown of a frame, and the measures that rules share.

A stream looks on the device, at a fixed size, training in numpy, before a model is at hand: rules that need no features
take the arrays of either.
"""

from types import ModuleType
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int32, UInt8

from swjax.streaming.arrays import XpArray
from swjax.streaming.geometry import Geometry

SMALLEST_NORM = 1e-12


class FrameView(NamedTuple):
    """A frame that has been encoded and is not laid out yet; arrays of jax, or all of numpy.

    Attributes:
        features: of its tokens, by rows, and of what pads them to the largest frame's number (U).
        units: how many tokens it has.
        columns: tokens in a row.
        number: frames of the video before it.
        previous: features of the frame that it is compared with; of no meaning where `has_previous` is false, at the
            first frame and where frames change their size.
        has_previous: whether there is one.
        mean: mean feature of all frames before it; zeros at the first.
        pixels, previous_pixels: its last picture and the first one of the frame before, of each token its pixels of
            0 to 1; None where the rule needs none.
    """

    features: Float[XpArray, "U D"]
    units: Int32[XpArray, ""]
    columns: Int32[XpArray, ""]
    number: Int32[XpArray, ""]
    previous: Float[XpArray, "U D"]
    has_previous: Bool[XpArray, ""]
    mean: Float[XpArray, "D"]
    pixels: Float[XpArray, "U C"] | None = None
    previous_pixels: Float[XpArray, "U C"] | None = None

    @property
    def exists(self) -> Bool[XpArray, "U"]:
        """Which tokens are the frame's."""
        return self.xp.arange(self.features.shape[0]) < self.units

    @property
    def xp(self) -> ModuleType:
        """Numpy, or jax.numpy, of the arrays."""
        return np if isinstance(self.features, np.ndarray) else jnp


FEATURES, PIXELS = "features", "pixels"
"""What a rule may need of a frame."""


@runtime_checkable
class Drop(Protocol):
    """A rule: which tokens of a frame become slots. Frozen and hashable; what it knows of the past is in the view.

    One that does not need features says what it needs by `needs`, a set of `FEATURES` and `PIXELS`.
    """

    def keep(self, view: FrameView) -> Bool[XpArray, "U"]:
        """Which stay; traced once for all frames. What pads the frame is not looked at."""


def needs_of(drop: Drop) -> frozenset[str]:
    """What a rule needs of a frame."""
    return getattr(drop, "needs", frozenset({FEATURES}))


def token_pixels(
    patches: UInt8[np.ndarray, "P C"], geometry: Geometry
) -> tuple[Float[np.ndarray, "U pixels"], Float[np.ndarray, "U pixels"]]:
    """The first and the last picture of a frame: of each token its pixels, from 0 to 1.

    Args:
        patches: of the frame, in the processor's order.
        geometry: sizes of the patches.
    """
    shape = (-1, geometry.token_patches, len(geometry.pixel_mean), geometry.temporal_patch_size, geometry.patch_size**2)
    pixels = patches.reshape(shape).astype(np.float32) / 255
    first, last = (pixels[:, :, :, index].reshape(len(pixels), -1) for index in (0, -1))
    return first, last


def cosine(a: Float[XpArray, "*n D"], b: Float[XpArray, "*n D"]) -> Float[XpArray, "*n"]:
    """Cosines of features, in float32; nothing is like a feature of zeros."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return (a * b).sum(axis=-1) / jnp.maximum(norms, SMALLEST_NORM)


def likeness_to_previous(view: FrameView) -> Float[XpArray, "U"]:
    """Cosine with the feature at the same place of the frame before; -inf where there is none."""
    return jnp.where(view.has_previous, cosine(view.features, view.previous), -jnp.inf)


def likeness_to_neighbors(view: FrameView) -> Float[XpArray, "U"]:
    """Largest cosine with the feature above, below, to the left or to the right; beyond an edge there is none."""
    index = jnp.arange(view.features.shape[0])
    column = index % view.columns
    likeness = jnp.full(index.shape, -jnp.inf)
    for step, inside in (
        (-view.columns, index >= view.columns),
        (view.columns, index + view.columns < view.units),
        (-1, column > 0),
        (1, column < view.columns - 1),
    ):
        other = view.features[jnp.clip(index + step, 0, len(index) - 1)]
        likeness = jnp.where(inside, jnp.maximum(likeness, cosine(view.features, other)), likeness)
    return likeness


def checkerboard(view: FrameView) -> Bool[XpArray, "U"]:
    """Every second place, no two of which are neighbors; the first is not among them."""
    index = jnp.arange(view.features.shape[0])
    return (index // view.columns + index % view.columns) % 2 == 1


def lowest(scores: Float[XpArray, "U"], view: FrameView, share: float) -> Bool[XpArray, "U"]:
    """A share of the tokens, and one at least: those with the lowest scores, of equal ones the first.

    Args:
        scores: of each token; what pads the frame is not looked at.
        view: the frame.
        share: of its tokens, from 0 to 1; their number is rounded down.

    Returns:
        Which tokens these are; false for what pads the frame.
    """
    count, xp = share_of(view, share), view.xp
    order = xp.argsort(xp.where(view.exists, scores, xp.inf), stable=True)
    return xp.argsort(order) < count


def share_of(view: FrameView, share: float) -> Int32[XpArray, ""]:
    """So much of the tokens of a frame, rounded down, and one at least."""
    exact = view.units.astype(np.float32) * np.float32(share)
    return view.xp.maximum(1, view.xp.floor(exact + np.float32(1e-4)).astype(np.int32))
