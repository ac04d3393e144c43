"""Numbers and arithmetic that all kernels share which go through the keys block by block, with a running softmax."""

import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LOG2E = math.log2(math.e)
"""Kernels raise two to their scores, as the hardware does."""

FIRST_MAXIMUM = -1e29
"""A maximum to begin with, below any real score, so that the weight of a masked score is zero from the start."""

Index: TypeAlias = Array | int
"""A whole number that a kernel computes, or one that is known when it is traced."""

UNSEEN = -1e30
"""A masked score: below `FIRST_MAXIMUM`, also once it is scaled for heads of at most 128 features."""


def quotient(size: Index, divisor: int) -> Array:
    """Of int32 that are not negative: `//` asks the machine for their signs, one that may not be the compiler's."""
    return jax.lax.div(size, jnp.int32(divisor))


def dot(
    a: Float[Array, "..."], b: Float[Array, "..."], axes: tuple[int, int], precision: jax.lax.PrecisionLike
) -> Float[Array, "m n"]:
    """The product of two matrices over an axis of each, in float32.

    Args:
        a, b: the matrices, of one dtype.
        axes: the axis of a, and that of b, to sum over.
        precision: of the product.
    """
    dims = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def pad(x: Array, axis: int, multiple: int) -> Array:
    """Zeros at the end of an axis.

    Args:
        x: an array of any shape and dtype.
        axis: its number; a negative one counts from the last.
        multiple: what the length of the axis becomes a multiple of.
    """
    missing = -x.shape[axis] % multiple
    return jnp.pad(x, [(0, missing if i == axis % x.ndim else 0) for i in range(x.ndim)]) if missing else x
