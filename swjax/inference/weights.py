"""A model's weights, as they are best held on the devices on which it streams."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from swjax.compiler import WIDTH_TILES
from swjax.hub import CheckpointError
from swjax.models.decoder_layer import GatedLayer
from swjax.models.model import VideoLanguageModel
from swjax.models.parameters import Parameters, merge_parameters, split_parameters, widened

Model = VideoLanguageModel
"""What can stream: a model of any family."""

SMALL = 2**14
"""Arrays of layers with fewer numbers are given to a pass as one stack: each array costs it microseconds."""
ANY_LAYER = "*"
"""Stands in the path of such a stack for the number of the layer."""


@dataclass(frozen=True)
class Held:
    """A module ready to stream.

    Attributes:
        structure: hashable; with it, `assembled` makes the module of the parameters.
        parameters: by path, small arrays of all layers as one.
    """

    structure: nnx.GraphDef[Any]
    parameters: Parameters

    @classmethod
    def of(cls, module: nnx.Module) -> "Held":
        """The module taken apart."""
        structure, parameters = split_parameters(module)
        alike: defaultdict[str, Parameters] = defaultdict(dict)
        for path, leaf in parameters.items():
            shared = "/".join(ANY_LAYER if part.isdigit() else part for part in path.split("/"))
            alike[shared if leaf.size < SMALL else path][path] = leaf
        return cls(structure, {path: _stacked(path, leaves) for path, leaves in alike.items()})


def assembled(structure: nnx.GraphDef[Any], parameters: Mapping[str, Any]) -> Any:
    """The module that is held, inside of a compiled function."""
    single: Parameters = {}
    for path, leaf in parameters.items():
        stacked = ANY_LAYER in path
        single |= {path.replace(ANY_LAYER, str(i)): leaf[i] for i in range(len(leaf))} if stacked else {path: leaf}
    return merge_parameters(structure, single)


def _stacked(path: str, leaves: Parameters) -> Any:
    arrays = list(leaves.values())
    if ANY_LAYER not in path:
        return arrays[0]
    if isinstance(arrays[0], jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(arrays), *arrays[0].shape), arrays[0].dtype)
    return jnp.stack(arrays)


class Weights:
    """A model ready to stream. Several engines may share them.

    But for a TPU, layers become arrays of their own: a copy, made once, where each pass would copy them out of their
    stack. (The weights of 3B on an H200: 3 ms of an 18 ms pass.) For a GPU, products with the same input become one.

    Args:
        model: the model, real or abstract.
        sharding: where the parameters are to lie; None leaves them where they are.

    Attributes:
        config: the model's.
        platform: of the devices that they are for.
        decoder, visual: its halves, as passes and frames need them.
        sharding: as above.

    Raises:
        CheckpointError: if a parameter of a real model has values that are not finite.
    """

    def __init__(self, model: VideoLanguageModel, sharding: jax.sharding.Sharding | None = None):
        self.config, self.sharding = model.config, sharding
        self.platform = _platform(sharding)
        check_finite(split_parameters(model)[1])
        held = model if self.platform == "tpu" else model.with_layers_apart()
        if self.platform == "gpu":
            structure, parameters = split_parameters(held)
            held = merge_parameters(structure, widened(parameters, WIDTH_TILES["gpu"]))
            layers: Any = held.decoder.layers
            for layer in layers:
                if isinstance(layer, GatedLayer):
                    layer.merge_products()
        self.decoder, self.visual = Held.of(held.decoder), Held.of(held.visual)

    @property
    def fewest_tokens(self) -> int:
        """What a pass should have of tokens, at least, in all of its rows together."""
        return 8 if self.platform == "gpu" else 1  # fewer are not given to cuBLAS, and take longer


def _platform(sharding: jax.sharding.Sharding | None) -> str:
    device: jax.Device = jax.devices()[0] if sharding is None else next(iter(sharding.device_set))
    return str(device.platform)


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
