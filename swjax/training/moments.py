"""AdamW whose moments may be kept in bfloat16, for half of the optimizer's memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, DTypeLike, Float

from swjax.models.parameters import Leaves


def adamw(
    schedule: optax.Schedule,
    *,
    b1: float,
    b2: float,
    weight_decay: float,
    mask: Callable[[Leaves], dict[str, bool]],
    moments_dtype: DTypeLike,
) -> optax.GradientTransformation:
    """`optax.adamw` with both moments kept in a dtype of choice; computed in float32 whatever they are kept in.

    Args:
        schedule: the learning rate.
        b1, b2, weight_decay, mask: as for `optax.adamw`.
        moments_dtype: float32 or bfloat16. bfloat16 is rounded at random: with b2 = 0.999 a step changes the second
            moment by less than half of bfloat16's spacing, so rounding to the nearest would never let it fall.
    """
    if jnp.dtype(moments_dtype) == jnp.float32:
        return optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=mask)
    return optax.chain(
        _scale_by_adam_in_bfloat16(b1, b2),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(schedule),
    )


def round_at_random(x: Float[Array, "*n"], key: Array) -> Float[Array, "*n"]:
    """Rounds float32 up or down to bfloat16 with the odds that make it exact in the mean.

    bfloat16 is float32's upper half: random bits added to the lower half carry into the upper with these odds.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    bits = bits + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)


def _scale_by_adam_in_bfloat16(b1: float, b2: float) -> optax.GradientTransformation:
    inner = optax.scale_by_adam(b1=b1, b2=b2)

    def init(parameters: optax.Params) -> optax.ScaleByAdamState:
        state = inner.init(parameters)
        return state._replace(mu=optax.tree.cast(state.mu, jnp.bfloat16), nu=optax.tree.cast(state.nu, jnp.bfloat16))

    def update(
        gradients: optax.Updates, state: Any, parameters: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        wide = state._replace(mu=optax.tree.cast(state.mu, jnp.float32), nu=optax.tree.cast(state.nu, jnp.float32))
        updates, wide = inner.update(gradients, wide, parameters)
        leaves, structure = jax.tree.flatten((wide.mu, wide.nu))
        # The same draw at the same step, so that a run that is resumed ends as one that was never stopped.
        keys = jax.random.split(jax.random.key(wide.count), len(leaves))
        rounded = [round_at_random(leaf, key) for leaf, key in zip(leaves, keys, strict=True)]
        mu, nu = jax.tree.unflatten(structure, rounded)
        return updates, wide._replace(mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)
