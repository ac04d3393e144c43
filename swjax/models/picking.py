"""Rows that are looked up, with gradients that JAX does not know how to make well.

The gradient of a look-up is a scattered sum, as a row may be picked twice. Where none is, the gradient of each row
stands at one known place, so it is picked as well (`pick`), as TPUs add scattered rows one after another. Where rows
come again and again, as those of an embedding do, it is summed in float32 (`look_up`).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32


@jax.custom_vjp
def pick(x: Float[Array, "B S D"], index: Int32[Array, "B N"], place: Int32[Array, "B S"]) -> Float[Array, "B N D"]:
    """Rows of x in another order, of which each has at most one place where its gradient comes from.

    Args:
        x: what is picked from.
        index: which row of x comes at each place of the result, from 0 to S - 1.
        place: the inverse of it: at which place of the result the gradient of each row of x stands; below 0, or from N
            on, if it has none. Places that are named by no row must have no gradient.

    Returns:
        x[b, index[b, n]], in the dtype of x.
    """
    return jnp.take_along_axis(x, index[..., None], axis=1)


def _forward(x: Array, index: Array, place: Array) -> tuple[Array, Array]:
    return pick(x, index, place), place


def _backward(place: Array, gradient: Array) -> tuple[Array, None, None]:
    has_one = (place >= 0) & (place < gradient.shape[1])
    found = jnp.take_along_axis(gradient, place[..., None], axis=1, mode="clip")
    return jnp.where(has_one[..., None], found, 0), None, None


pick.defvjp(_forward, _backward)


def look_up(weight: Float[Array, "V D"], ids: Int32[Array, "*B L"]) -> Float[Array, "*B L D"]:
    """Rows of a weight; the gradient of each is summed in float32 and rounded once to the dtype of the weight.

    Args:
        weight: what is looked up in.
        ids: from 0 to V - 1; any of them as often as it comes.
    """
    return _looked_up(len(weight), weight, ids)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _looked_up(num_rows: int, weight: Array, ids: Array) -> Array:
    del num_rows  # its gradient needs it
    return weight[ids]


def _look_up_forward(num_rows: int, weight: Array, ids: Array) -> tuple[Array, Array]:
    return _looked_up(num_rows, weight, ids), ids


def _look_up_backward(num_rows: int, ids: Array, gradient: Array) -> tuple[Array, None]:
    total = jnp.zeros((num_rows, gradient.shape[-1]), jnp.float32).at[ids].add(gradient.astype(jnp.float32))
    return total.astype(gradient.dtype), None


_looked_up.defvjp(_look_up_forward, _look_up_backward)


def visual_places(
    is_visual: Bool[Array, "B L"],
    num_features: int,
    *,
    slots: Int32[Array, "B L"] | None = None,
    kept: Bool[Array, "B U"] | None = None,
) -> tuple[Int32[Array, "B L"], Int32[Array, "B U"]]:
    """Which feature of a video each visual token stands for, and back, as `pick` takes them.

    Args:
        is_visual: tokens that stand for a feature each, in order of their slots.
        num_features: U, of each row.
        slots: slot of each token; None if tokens are in slot order.
        kept: which features there are tokens for; None for the first ones.

    Returns:
        The feature of each token (any one, if it is not visual), and the token of each feature; L if it has none.
    """
    length = is_visual.shape[1]
    ranks = jnp.broadcast_to(jnp.arange(num_features, dtype=jnp.int32), (len(is_visual), num_features))
    if kept is not None:
        ranks = jnp.where(kept, jnp.cumsum(kept, axis=1, dtype=jnp.int32) - 1, length)
    in_slot_order = is_visual if slots is None else jnp.take_along_axis(is_visual, jnp.argsort(slots), axis=1)
    index = jnp.maximum(jnp.cumsum(in_slot_order, axis=1, dtype=jnp.int32) - 1, 0)
    if slots is not None:
        index = jnp.take_along_axis(index, slots, axis=1)
    tokens = jnp.argsort(jnp.where(is_visual, index, length), axis=1).astype(jnp.int32)  # of each rank
    place = jnp.take_along_axis(tokens, ranks, axis=1, mode="clip")
    place = jnp.where(ranks < is_visual.sum(axis=1, keepdims=True), place, length)
    if kept is not None:
        index = jnp.take_along_axis(jnp.argsort(~kept, axis=1, stable=True), index, axis=1)
    return index, place
