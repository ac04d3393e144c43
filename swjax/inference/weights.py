"""A model's weights, as they are best held on the devices on which it streams."""

from typing import Any

import jax
from flax import nnx

from swjax.conversion.parameters import Parameters, split_parameters
from swjax.models.qwen2_5_vl import Qwen2_5_VL


def streaming_weights(
    model: Qwen2_5_VL, sharding: jax.sharding.Sharding | None = None
) -> tuple[nnx.GraphDef, Parameters]:
    """Takes a model, real or abstract, apart into its structure and its parameters.

    But for a TPU, layers become arrays of their own: a copy, made once, where each pass would copy them out of their
    stack. (The weights of 3B on an H200: 3 ms of an 18 ms pass.)

    Args:
        model: the model.
        sharding: where the parameters are to lie; None leaves them where they are.
    """
    device: Any = jax.devices()[0] if sharding is None else next(iter(sharding.device_set))
    return split_parameters(model if device.platform == "tpu" else model.with_layers_apart())
