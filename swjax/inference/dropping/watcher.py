"""What a stream remembers of the frames before, for its rule of dropping: one frame's features, and a mean of all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from swjax.inference.frames import Frame
from swjax.streaming.dropping.dtd import LAST_KEPT
from swjax.streaming.dropping.view import PIXELS, Drop, FrameView, needs_of, token_pixels


class Watcher:
    """Looks at the frames of a stream one after another, in the order in which they are encoded.

    Args:
        drop: the rule.
    """

    def __init__(self, drop: Drop):
        self._drop = drop
        self._previous: Float[Array, "U D"] | None = None
        self._mean: Array | None = None
        self._grid: tuple[int, int] | None = None
        self._pixels: np.ndarray | None = None
        self._frames = 0

    def look(self, frame: Frame, number: int, features: Float[Array, "U D"]) -> Bool[Array, "U"]:
        """Which tokens of the next frame stay; returns before it is known.

        Args:
            frame: the frame.
            number: frames of the video before it.
            features: of its tokens, by rows, and of what pads them.
        """
        merge, units = frame.geometry.merge_size, len(frame.patches) // frame.geometry.token_patches
        alike = self._grid == frame.grid_hw and self._previous is not None and self._previous.shape == features.shape
        pixels: np.ndarray | None = None
        before: np.ndarray | None = None
        if PIXELS in needs_of(self._drop):
            made = token_pixels(frame.patches, frame.geometry)
            first, pixels = (np.pad(one, ((0, len(features) - len(one)), (0, 0))) for one in made)
            before, self._pixels = self._pixels if alike else pixels, first
        view = FrameView(
            features=features,
            units=jnp.int32(units),
            columns=jnp.int32(frame.grid_hw[1] // merge),
            number=jnp.int32(number),
            previous=self._previous if alike and self._previous is not None else features,
            has_previous=jnp.bool_(alike),
            mean=jnp.zeros(features.shape[1], jnp.float32) if self._mean is None else self._mean,
            pixels=pixels,
            previous_pixels=before,
        )
        keep, self._previous, self._mean = _look(self._drop, view, jnp.int32(self._frames))
        self._grid, self._frames = frame.grid_hw, self._frames + 1
        return keep


@functools.partial(jax.jit, static_argnums=0)
def _look(
    drop: Drop, view: FrameView, frames: Array
) -> tuple[Bool[Array, "U"], Float[Array, "U D"], Float[Array, "D"]]:
    exists = view.exists
    keep = drop.keep(view) & exists
    previous = view.features
    if getattr(drop, "against", None) == LAST_KEPT:
        previous = jnp.where(view.has_previous & ~keep[:, None], view.previous, previous)
    mean = (view.features.astype(jnp.float32) * exists[:, None]).sum(axis=0) / view.units
    return keep, previous, view.mean + (mean - view.mean) / (frames + 1)
