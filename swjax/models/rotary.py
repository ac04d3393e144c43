"""Rotary embeddings: M-RoPE of the decoder and 2-D rotary of the vision tower.

Angles are computed in float32: a gap of 10,000 position ids is beyond the integers of bfloat16.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Rotation(NamedTuple):
    """Cosine and sine of the angle of every pair of features: float32[B, L, H/2] each."""

    cos: Float[Array, "B L H/2"]
    sin: Float[Array, "B L H/2"]


@dataclass(frozen=True)
class Rotary:
    """M-RoPE: each frequency turns with the temporal, the height or the width id.

    Attributes:
        head_dim: features of a head; they turn in pairs (i, i + head_dim / 2).
        theta: base of the frequencies.
        sections: frequencies of each id; their sum is head_dim / 2.
        interleaved: whether the ids take turns (t h w t h w ... t t) in the place of one run of frequencies each.
    """

    head_dim: int
    theta: float
    sections: tuple[int, int, int]
    interleaved: bool = False

    def __post_init__(self) -> None:
        if self.interleaved and 3 * max(self.sections[1:]) > self.head_dim // 2:
            raise ValueError(f"sections {self.sections} cannot take turns among {self.head_dim // 2} frequencies")

    def __call__(self, position_ids: Int[Array, "3 B L"]) -> Rotation:
        """The rotation of tokens at temporal, height and width ids."""
        angles = position_ids.astype(jnp.float32)[self._rows()].transpose(1, 2, 0)
        angles = angles * _inverse_frequencies(self.head_dim, self.theta)
        return Rotation(jnp.cos(angles), jnp.sin(angles))

    def _rows(self) -> Int[np.ndarray, "half"]:
        """Which of the three ids each frequency turns with."""
        if not self.interleaved:
            return np.repeat(np.arange(3), self.sections)
        rows = np.zeros(self.head_dim // 2, int)
        for axis in (1, 2):
            rows[axis : 3 * self.sections[axis] : 3] = axis
        return rows


def _inverse_frequencies(dim: int, theta: float) -> Float[np.ndarray, "half"]:
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return (1.0 / np.float32(theta) ** exponent).astype(np.float32)


def planar_rotation(
    rows: Int[Array, "B L"], columns: Int[Array, "B L"], *, head_dim: int, theta: float, width: int = 0
) -> Rotation:
    """2-D rotary of image patches: the first half of the frequencies turns with the row, the second with the column.

    Args:
        rows, columns: of each patch.
        head_dim: H.
        theta: base of the frequencies.
        width: of heads whose halves are filled up with zeros; what fills them turns by nothing. 0 stands for H.
    """
    frequencies = _inverse_frequencies(head_dim // 2, theta)
    coordinates = jnp.stack([rows, columns], axis=-1).astype(jnp.float32)
    angles = (coordinates[..., None] * frequencies).reshape(*rows.shape, head_dim // 2)
    angles = jnp.pad(angles, ((0, 0), (0, 0), (0, max(width - head_dim, 0) // 2)))
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "B L N H"], rotation: Rotation, *, scale: float = 1.0) -> Float[Array, "B L N H"]:
    """Rotate each pair of features (i, i + H/2) by its angle, in float32; returns the dtype of x.

    Gradients go to x alone: angles are of position ids.

    Args:
        x: heads.
        rotation: of each token.
        scale: what the result is multiplied by, before it is rounded.
    """
    cos, sin = (part if scale == 1 else part * scale for part in rotation)
    return _turn(x, cos, sin)


@jax.custom_vjp
def _turn(x: Array, cos: Array, sin: Array) -> Array:
    return jax.lax.platform_dependent(x, cos, sin, tpu=turn_by_product, default=_turn_by_halves)


def _turn_and_keep(x: Array, cos: Array, sin: Array) -> tuple[Array, tuple[Array, Array]]:
    return _turn(x, cos, sin), (cos, sin)


def _turn_back(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    cos, sin = kept
    return _turn(gradient, cos, -sin), jnp.zeros_like(cos), jnp.zeros_like(sin)


_turn.defvjp(_turn_and_keep, _turn_back)


def _turn_by_halves(x: Float[Array, "B L N H"], cos: Array, sin: Array) -> Float[Array, "B L N H"]:
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def turn_by_product(
    x: Float[Array, "B L N H"], cos: Float[Array, "B L H/2"], sin: Float[Array, "B L H/2"]
) -> Float[Array, "B L N H"]:
    """The same, for the compiler of TPUs, which would write both halves of all heads to memory, and put them together.

    A product with a permutation exchanges the halves, without rounding. It takes no time beside fetching x, and the
    compiler makes one operation of it and all else.

    Args:
        x: heads.
        cos, sin: of the angle of every pair.
    """
    half = x.shape[-1] // 2
    x = jax.lax.optimization_barrier(x)  # else the bias that was added to x keeps the product from being joined
    exchange = jnp.asarray(np.roll(np.eye(2 * half), half, axis=1), x.dtype)
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    exchanged = jnp.einsum("blnh,hg->blng", x, exchange, precision=precision, preferred_element_type=jnp.float32)
    cos, sin = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
    return (x.astype(jnp.float32) * cos[:, :, None] + exchanged * sin[:, :, None]).astype(x.dtype)
