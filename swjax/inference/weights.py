"""A model's weights, as they are best held on the devices on which it streams."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from swjax.compiler import WIDTH_TILES
from swjax.hub import CheckpointError
from swjax.models.model import VideoLanguageModel
from swjax.models.parameters import Parameters, split_parameters, widened

Model = VideoLanguageModel
"""What can stream: a model of any family."""


class Weights:
    """A model ready to stream. Several engines may share them.

    But for a TPU, layers become arrays of their own: a copy, made once, where each pass would copy them out of their
    stack. (The weights of 3B on an H200: 3 ms of an 18 ms pass.)

    Args:
        model: the model, real or abstract.
        sharding: where the parameters are to lie; None leaves them where they are.

    Attributes:
        config: the model's.
        platform: of the devices that they are for.
        structure: of the model, hashable.
        parameters: by path.
        sharding: as above.

    Raises:
        CheckpointError: if a parameter of a real model has values that are not finite.
    """

    def __init__(self, model: VideoLanguageModel, sharding: jax.sharding.Sharding | None = None):
        self.config, self.sharding = model.config, sharding
        device: jax.Device = jax.devices()[0] if sharding is None else next(iter(sharding.device_set))
        self.platform: str = device.platform
        held = model if self.platform == "tpu" else model.with_layers_apart()
        self.structure, parameters = split_parameters(held)
        self.parameters = widened(parameters, WIDTH_TILES.get(self.platform, 1))
        check_finite(self.parameters)


def check_finite(parameters: Parameters) -> None:
    """Refuse weights with a NaN or an infinity: every answer would be one, or made of them.

    Raises:
        CheckpointError: if there is one; shapes in the place of parameters have none.
    """
    counts = {name: _not_finite(one) for name, one in parameters.items() if isinstance(one, jax.Array)}
    bad = [f"{name} ({count} of {parameters[name].size})" for name, count in jax.device_get(counts).items() if count]
    if bad:
        raise CheckpointError(
            f"the model has weights that are not finite: {', '.join(bad[:3])}{' and others' if bad[3:] else ''}; "
            "fetch it again, or take an earlier checkpoint of its training"
        )


@jax.jit
def _not_finite(values: Array) -> Array:
    return jnp.count_nonzero(~jnp.isfinite(values))
