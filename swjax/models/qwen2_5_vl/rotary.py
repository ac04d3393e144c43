"""Rotary embeddings: M-RoPE of the decoder and 2-D rotary of the vision tower.

Angles are computed in float32: a gap of 10,000 position ids is beyond the integers of bfloat16.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Rotation(NamedTuple):
    """Cosine and sine of the angle of every pair of features: float32[B, L, H/2] each."""

    cos: Float[Array, "B L H/2"]
    sin: Float[Array, "B L H/2"]


def _inverse_frequencies(dim: int, theta: float) -> Float[np.ndarray, "dim/2"]:
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return (1.0 / np.float32(theta) ** exponent).astype(np.float32)


def multimodal_rotation(
    position_ids: Int[Array, "3 B L"], *, head_dim: int, theta: float, sections: tuple[int, int, int]
) -> Rotation:
    """M-RoPE: the frequencies are split into sections that turn with the temporal, height and width id.

    Args:
        position_ids: temporal, height and width ids.
        sections: number of frequencies in each section; their sum is head_dim / 2.
    """
    row = np.repeat(np.arange(3), sections)
    angles = position_ids.astype(jnp.float32)[row].transpose(1, 2, 0) * _inverse_frequencies(head_dim, theta)
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def planar_rotation(rows: Int[Array, "B L"], columns: Int[Array, "B L"], *, head_dim: int, theta: float) -> Rotation:
    """2-D rotary of image patches: the first half of the frequencies turns with the row, the second with the column."""
    frequencies = _inverse_frequencies(head_dim // 2, theta)
    coordinates = jnp.stack([rows, columns], axis=-1).astype(jnp.float32)
    angles = (coordinates[..., None] * frequencies).reshape(*rows.shape, head_dim // 2)
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "B L N H"], rotation: Rotation) -> Float[Array, "B L N H"]:
    """Rotate each pair of features (i, i + H/2) by its angle, in float32; returns the dtype of x."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = rotation.cos[:, :, None], rotation.sin[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
