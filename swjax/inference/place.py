"""Where what streams are made of lies: on one device, or divided over a mesh by the table that training has.

Rows are divided over `data` and `fsdp`, heads and features over `tensor`. Frames are encoded by each device for itself.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias, TypeVar

import jax
from jax.sharding import Mesh, Sharding
from jaxtyping import Array

from swjax.attention import AttentionSharding, SpanAttention
from swjax.mesh import array_sharding, parameter_shardings, replicated
from swjax.models.config import ModelConfig
from swjax.models.family import abstract_model
from swjax.models.model import VideoLanguageModel
from swjax.models.parameters import Leaves, Parameters, merge_parameters, split_parameters

Where: TypeAlias = Sharding | Mesh | None
"""A sharding for all arrays, a mesh, or where they are made."""

CACHE, SAID, INBOX = "-BK--", "B-", "B---"
"""The axes of a lane's arrays."""

ROWS = ("data", "fsdp")
Tree = TypeVar("Tree")


def sharding_of(where: Where, axes: str, shape: Sequence[int]) -> Sharding | None:
    """The sharding of an array.

    Args:
        where: it is to lie.
        axes: a letter for each axis (`swjax.mesh.AXIS_RULES`).
        shape: of the array.
    """
    return array_sharding(where, axes, shape) if isinstance(where, Mesh) else where


def put(where: Where, arrays: Tree, axes: str) -> Tree:
    """Arrays with the same axes, moved to where they are to lie; returns before they are there.

    Args:
        where: a sharding, a mesh, or None, which leaves them where they are.
        arrays: a pytree.
        axes: a letter for each axis of every array.
    """
    if where is None:
        return arrays
    return jax.tree.map(lambda x: jax.device_put(x, sharding_of(where, axes, x.shape)), arrays)


def kept(mesh: Mesh | None, arrays: Tree, axes: str) -> Tree:
    """Arrays of a compiled function, which are to lie on the mesh as `put` lays them.

    Args:
        mesh: None leaves them to the compiler.
        arrays: a pytree.
        axes: a letter for each axis of every array.
    """
    if mesh is None:
        return arrays
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, array_sharding(mesh, axes, x.shape)), arrays)


def shape_of(where: Where, one: Array | jax.ShapeDtypeStruct, axes: str) -> jax.ShapeDtypeStruct:
    """The shape of an array that lies there.

    Args:
        where: it is to lie.
        one: the array, or its shape and dtype.
        axes: a letter for each of its axes.
    """
    return jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=sharding_of(where, axes, one.shape))


def put_parameters(where: Where, parameters: Leaves, *, whole: bool = False) -> Parameters:
    """Parameters, or their shapes, where they are to lie.

    Args:
        where: as above.
        parameters: by path.
        whole: on a mesh, all of them on each device.
    """
    if where is None:
        return dict(parameters)
    if isinstance(where, Mesh):
        shardings: Leaves = (
            dict.fromkeys(parameters, replicated(where)) if whole else parameter_shardings(where, parameters)
        )
    else:
        shardings = dict.fromkeys(parameters, where)
    return {
        path: jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=shardings[path])
        if isinstance(one, jax.ShapeDtypeStruct)
        else jax.device_put(one, shardings[path])
        for path, one in parameters.items()
    }


def platform_of(where: Where) -> str:
    """The platform of the devices."""
    if where is None:
        return str(jax.devices()[0].platform)
    devices: Iterable[jax.Device] = where.devices.flat if isinstance(where, Mesh) else where.device_set
    return str(next(iter(devices)).platform)


def check_mesh(mesh: Mesh, config: ModelConfig) -> None:
    """Refuse a mesh that a model cannot stream on.

    Raises:
        ValueError: names the axis and what would fit.
    """
    heads, key_heads, shards = config.text.num_heads, config.text.num_kv_heads, mesh.shape["tensor"]
    if mesh.shape["context"] > 1:
        raise ValueError("streams are not divided along their slots; give the mesh no context axis")
    if heads % shards or (key_heads % shards and shards % key_heads):
        fitting = [n for n in range(1, heads + 1) if not (heads % n or (key_heads % n and n % key_heads))]
        raise ValueError(
            f"{heads} query heads and {key_heads} key heads are not divided by tensor={shards}; "
            f"choose one of {', '.join(map(str, fitting))}"
        )


def row_shards(where: Where) -> int:
    """The number of parts that rows are divided into."""
    return math.prod(where.shape[axis] for axis in ROWS) if isinstance(where, Mesh) else 1


def key_head_copies(where: Where, config: ModelConfig) -> int:
    """How often each key head stands in a cache, so that each device has those that its query heads read."""
    shards = where.shape["tensor"] if isinstance(where, Mesh) else 1
    return max(1, shards // config.text.num_kv_heads)


def on_mesh(model: VideoLanguageModel, mesh: Mesh) -> VideoLanguageModel:
    """A model whose parameters lie on a mesh, and whose kernels run on each device's heads: for whole sequences."""
    attention = SpanAttention("auto", AttentionSharding(mesh, heads="tensor"))
    whole = SpanAttention("auto", AttentionSharding(mesh))
    structure, _ = split_parameters(abstract_model(model.config, attention=attention, vision_attention=whole))
    return merge_parameters(structure, split_parameters(model)[1])


def attention_on(mesh: Mesh) -> tuple[SpanAttention, SpanAttention]:
    """What decoder and vision tower attend with: the one divided by rows and heads, the other whole on each device."""
    decoder = AttentionSharding(mesh, batch=ROWS, heads="tensor")
    return SpanAttention("auto", decoder), SpanAttention("auto", AttentionSharding(mesh))
