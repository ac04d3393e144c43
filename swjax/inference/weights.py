"""A model's weights, as they are best held on the devices on which it streams."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from swjax.compiler import WIDTH_TILES
from swjax.hub import CheckpointError
from swjax.inference.place import Where, attention_on, check_mesh, platform_of, put_parameters
from swjax.mesh import ConstrainOnMesh
from swjax.models.decoder_layer import GatedLayer
from swjax.models.family import abstract_model
from swjax.models.layers import SplitsProducts, keeping_axes, layers_apart, unconstrained
from swjax.models.model import VideoLanguageModel
from swjax.models.parameters import Leaves, Parameters, merge_parameters, split_parameters, widened

Result = TypeVar("Result")

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

    structure: nnx.GraphDef
    parameters: Parameters

    @classmethod
    def of(cls, module: nnx.Module, where: Where, *, whole: bool = False) -> "Held":
        """The module taken apart, its parameters where they are to lie (`put_parameters`).

        Args:
            module: real or abstract.
            where: its parameters are to lie.
            whole: on a mesh, all of them on each device.
        """
        structure, parameters = split_parameters(module)
        alike: defaultdict[str, Parameters] = defaultdict(dict)
        for path, leaf in parameters.items():
            shared = "/".join(ANY_LAYER if part.isdigit() else part for part in path.split("/"))
            alike[shared if leaf.size < SMALL else path][path] = leaf
        stacked = {path: _stacked(path, leaves) for path, leaves in alike.items()}
        return cls(structure, put_parameters(where, stacked, whole=whole))


def assembled(structure: nnx.GraphDef, parameters: Leaves) -> Any:
    """The module that is held, inside of a compiled function."""
    single: Parameters = {}
    for path, leaf in parameters.items():
        stacked = ANY_LAYER in path
        single |= {path.replace(ANY_LAYER, str(i)): leaf[i] for i in range(len(leaf))} if stacked else {path: leaf}
    return merge_parameters(structure, single)


def _stacked(path: str, leaves: Parameters) -> Array | jax.ShapeDtypeStruct:
    arrays = list(leaves.values())
    if ANY_LAYER not in path:
        return arrays[0]
    if isinstance(arrays[0], jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(arrays), *arrays[0].shape), arrays[0].dtype)
    return jnp.stack(arrays)


class Weights:
    """A model ready to stream. Several engines may share them.

    Layers become arrays of their own: a copy, made once, where each pass would copy them out of their stack. (Of 3B: on
    an H200 3 ms of an 18 ms pass; on a v5e, by the compiler's clock, 9 of 22.) On a TPU, whose memory may have no room
    for both, only if the model may be used up. A weight of several products becomes one for each, for the same reason,
    and for a GPU, the decoder's products with the same input become one.

    Args:
        model: the model, real or abstract.
        where: the parameters are to lie: a sharding for all of them, a mesh (`swjax.mesh.make_mesh`) over whose axes
            they are divided as in training, or None, which leaves them where they are.
        consume: whether the model is used up, so that what is made of it need not fit beside it.

    Attributes:
        config: the model's.
        platform: of the devices that they are for.
        decoder, visual: its halves, as passes and frames need them.
        where: as above.

    Raises:
        CheckpointError: if a parameter of a real model has values that are not finite.
        ValueError: if the mesh does not divide the model.
    """

    def __init__(self, model: VideoLanguageModel, where: Where = None, *, consume: bool = False):
        self.config, self.where, self.platform = model.config, where, platform_of(where)
        parameters = split_parameters(model)[1]
        check_finite(parameters)
        visual = model
        if isinstance(where, Mesh):
            check_mesh(where, self.config)
            attention, of_frames = attention_on(where)
            structures = (
                abstract_model(self.config, attention=attention, constrain=ConstrainOnMesh(where)),
                abstract_model(self.config, vision_attention=of_frames),
            )
            model, visual = (merge_parameters(split_parameters(one)[0], parameters) for one in structures)
        decoder, tower = self._held(model.decoder, "layers", consume), self._held(visual.visual, "blocks", consume)
        for layer in decoder.layers if self._is_single_gpu else ():
            if isinstance(layer, GatedLayer):
                layer.merge_products()
        self.decoder, self.visual = Held.of(decoder, where), Held.of(tower, where, whole=True)

    @property
    def _is_single_gpu(self) -> bool:
        return self.platform == "gpu" and not isinstance(self.where, Mesh)

    def _held(self, module: Any, layers: str, consume: bool) -> Any:
        """A half of the model with layers of their own, and with wider products where the platform wants them."""
        held = nnx.merge(*nnx.split(module))
        for _, part in nnx.iter_modules(held) if self.platform == "tpu" else ():
            if getattr(part, "constrain", None) is unconstrained:
                vars(part)["constrain"] = keeping_axes
        if consume or self.platform != "tpu":
            setattr(held, layers, layers_apart(getattr(held, layers), consume=consume))
        if self._is_single_gpu or self.platform == "tpu":
            structure, parameters = split_parameters(held)
            held = merge_parameters(structure, widened(parameters, WIDTH_TILES[self.platform]))
        apart = getattr(held, layers)
        for layer in apart if isinstance(apart, nnx.List) else ():
            if isinstance(layer, SplitsProducts):
                layer.split_products()
        return held

    def compiled(self, make: Callable[..., Result]) -> Result:
        """What is compiled of these weights' structures, by a function that remembers it."""
        mesh = self.where if isinstance(self.where, Mesh) else None
        return make(self.decoder.structure, self.visual.structure, self.platform, mesh)

    @property
    def fewest_tokens(self) -> int:
        """What a pass should have of tokens, at least, in all of its rows together."""
        return 8 if self.platform == "gpu" else 1  # fewer are not given to cuBLAS, and take longer


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
