"""What models are made of: norms, linear layers, stacks of layers, and the words in which they name their axes.

Names of weights spell their axes: d model, n heads, k key-value heads, h head dim, f feed-forward, v vocabulary, c the
numbers of a patch, m a merged patch, x query, key and value. A linear layer's is `NAME_weight_AXES`, the axes that it
contracts first; adapters and sharding read it there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, DTypeLike, Float, UInt8

from swjax.models.adapters import AdaptedWeight
from swjax.models.remat import PROJECTION, WIDE_PROJECTION, rematerialized
from swjax.streaming import Geometry, KeySpans

Carry = TypeVar("Carry")

UNROLLED_LAYERS = 8

Attention = Callable[[Array, Array, Array, KeySpans], Array]
"""What a model attends with: `span_attention`, or a `SpanAttention`. Hashable, as it is part of the structure."""

Constrain = Callable[[Array, str], Array]
"""Lays an activation out over devices, given a letter for each of its axes; hashable. The model says what its axes are,
and whoever trains it, where they go: B rows, L slots, P patches or merged patches, D model, N heads, K key-value heads,
F feed-forward, V vocabulary. Around a look-up along an axis that may be divided, other axes are asked for: R is the
rows and d the features of tokens looked up in the embedding, S the features where slots are filled or picked out, E
those where patches are; - is never divided.
"""


def unconstrained(x: Array, axes: str) -> Array:
    """Leaves an activation where it is: for one device, or for the compiler to choose."""
    return x


def keeping_axes(x: Array, axes: str) -> Array:
    """The same, for one TPU: products are not made ones of matrices, for which weights of heads would be copied."""
    return x


def rms_norm(x: Float[Array, "*B D"], scale_d: Float[Array, "D"], eps: float) -> Float[Array, "*B D"]:
    """Root-mean-square normalization in float32; returns the dtype of x.

    Args:
        x: features in the last axis.
        scale_d: what each normalized feature is multiplied by, in the dtype of x; a wider one widens the result.
        eps: is added to the mean square.
    """
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return scale_d * normed.astype(x.dtype)


def project(
    x: Float[Array, "B L *D"],
    weight: nnx.Param[Any],
    axes: str,
    constrain: Constrain = unconstrained,
    *,
    part: int | None = None,
) -> Float[Array, "B L *F"]:
    """Contract the last axes of x with the first ones of a weight, and add what its adapter makes of x, if it has one.

    Args:
        x: rows, slots or patches, and the axes to contract.
        weight: the parameter: the axes to contract, and those of the result.
        axes: a letter for each axis of the result.
        constrain: lays the result out.
        part: of a weight of several products, whose axis of them is the first of the result's, the one to compute; so
            no result has to be cut.
    """
    held = weight.get_value()
    if part is not None:
        held = part_of(held, part, axis=len(held.shape) + 1 - len(axes))
    if isinstance(held, AdaptedWeight):
        down, up = held.scaled_down.astype(held.dtype), held.up.astype(held.dtype)
        added = _product(_product(held.dropped(x), down, f"{axes[:2]}r", constrain), up, axes, constrain)
        product = _product(x, held.weight.astype(held.dtype), axes, constrain)
        product = (product if held.scale is None else product * held.scale.astype(held.dtype)) + added
        product = product if (gain := held.gain) is None else product * gain.astype(held.dtype)
    else:
        product = _product(x, held, axes, constrain)
    return checkpoint_name(product, WIDE_PROJECTION if axes[-1] == "F" else PROJECTION)


def part_of(held: Any, number: int, *, axis: int) -> Any:
    """One of the products that a weight is of.

    Args:
        held: the weight: an array, the shape of one, or an adapted weight.
        number: of the product.
        axis: of the products, the first of the outputs.
    """
    if isinstance(held, AdaptedWeight):
        return held.part(number)
    if isinstance(held, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((*held.shape[:axis], *held.shape[axis + 1 :]), held.dtype)
    return jax.lax.index_in_dim(held, number, axis=axis, keepdims=False)


@runtime_checkable
class SplitsProducts(Protocol):
    """A layer with a weight of several products, of which it can make one for each."""

    def split_products(self) -> None:
        """Make a weight for each product: cut out of the weight of all, each is copied whenever the layer runs.

        The names that conversion, training and LoRA know are gone then.
        """


def _product(x: Array, weight: Array, axes: str, constrain: Constrain) -> Array:
    """On one device one product of two matrices: XLA takes twice as long on a CPU for the gradient of one of more axes.

    Where rows and slots are divided over devices they stay two axes, as one axis of both could not be laid out.
    """
    contracted = weight.ndim - (len(axes) - 2)
    if constrain is not unconstrained:
        return constrain(jnp.tensordot(x, weight, axes=contracted), axes)
    rows, inputs = math.prod(x.shape[:2]), math.prod(weight.shape[:contracted])
    product = x.reshape(rows, inputs) @ weight.reshape(inputs, -1)
    return product.reshape(*x.shape[:2], *weight.shape[contracted:])


@jax.custom_vjp
def gated(gate: Float[Array, "*B F"], up: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
    """What goes into the last product of an MLP: silu(gate) x up.

    Gradients are written to memory as they are. TPUs' compiler would compute them again inside of each of the four
    products that they go into.

    Args:
        gate, up: results of the first two products.
    """
    return _silu_times(gate, up)


def _silu_times(gate: Array, up: Array) -> Array:
    return jax.nn.silu(gate) * up


def _gated_and_inputs(gate: Array, up: Array) -> tuple[Array, tuple[Array, Array]]:
    return gated(gate, up), (gate, up)


def _gated_back(inputs: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    _, back = jax.vjp(_silu_times, *inputs)
    return jax.lax.optimization_barrier(back(gradient))


gated.defvjp(_gated_and_inputs, _gated_back)


def scan_layers(
    step: Callable[..., Carry], carry: Carry, layers: object, each: np.ndarray | None = None, *, remat: str = "nothing"
) -> Carry:
    """Run layers one after another; few stacked ones are unrolled, which is quicker than a loop on a CPU.

    Args:
        step: (carry, layer) -> carry; with `each`, (carry, (its element, layer)) -> carry.
        carry: what goes through the layers.
        layers: a pytree whose leaves have a leading axis of layers, or a list of layers (`layers_apart`).
        each: something for each layer.
        remat: what the backward pass computes again, one of `swjax.models.remat.REMAT`.
    """
    step = rematerialized(step, remat)
    if isinstance(layers, nnx.List):
        for index, layer in enumerate(layers):
            carry = step(carry, layer if each is None else (each[index], layer))
        return carry
    num_layers = jax.tree.leaves(layers)[0].shape[0]
    unroll = num_layers if num_layers <= UNROLLED_LAYERS and remat == "nothing" else 1
    scanned = layers if each is None else (jnp.asarray(each), layers)
    return jax.lax.scan(lambda carry, layer: (_carried(step(carry, layer)), None), carry, scanned, unroll=unroll)[0]


@jax.custom_vjp
def _carried(carry: Carry) -> Carry:
    """What goes on to the next layer.

    Its gradient is clamped to what it is anyway: v6e's compiler exchanges the operands of a product whose first one
    comes straight out of a loop. The result lies the other way round then, and all that an MLP keeps for its backward
    pass is copied to match.
    """
    return carry


def _clamped(gradient: Carry) -> Carry:
    def clamp(x: Array) -> Array:
        least, most = (jnp.asarray(end, x.dtype) for end in (-jnp.inf, jnp.inf))
        return jax.lax.platform_dependent(x, tpu=lambda x: jax.lax.clamp(least, x, most), default=lambda x: x)

    return jax.tree.map(clamp, gradient)


_carried.defvjp(lambda carry: (carry, None), lambda _, gradient: (_clamped(gradient),))


def layers_apart(layers: nnx.Module, *, consume: bool = False) -> nnx.List:
    """Stacked layers as a list, each with arrays of its own.

    To run one layer of a stack, XLA copies its weights out of it first, which takes longer than a decode step.

    Args:
        layers: as `stack_layers` makes them.
        consume: whether each stack is freed as soon as it is taken apart; the module is of no use then.
    """

    def pick(leaf: Array | jax.ShapeDtypeStruct, index: int) -> Array | jax.ShapeDtypeStruct:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        return leaf[index]

    leaves, structure = jax.tree.flatten(layers)
    apart = []
    for leaf in leaves:
        apart.append([pick(leaf, index) for index in range(leaf.shape[0])])
        if consume and isinstance(leaf, jax.Array):
            leaf.delete()
    return nnx.List([jax.tree.unflatten(structure, layer) for layer in zip(*apart, strict=True)])


Layer = TypeVar("Layer", bound=nnx.Module)


def stack_layers(make: Callable[[nnx.Rngs], Layer], rngs: nnx.Rngs, count: int) -> Layer:
    """So many layers as one module, each of whose parameters has a leading axis of layers.

    Args:
        make: makes one layer.
        rngs: draws the parameters.
        count: number of layers.
    """
    return nnx.split_rngs(splits=count)(nnx.vmap(make))(rngs)


@dataclass(frozen=True)
class Draw:
    """New parameters of one dtype.

    Attributes:
        rngs: draws them.
        stddev: standard deviation of weights, which are normal.
        dtype: of all.
    """

    rngs: nnx.Rngs
    stddev: float
    dtype: DTypeLike

    def weight(self, *shape: int) -> nnx.Param:
        """A weight."""
        return nnx.Param(nnx.initializers.normal(self.stddev)(self.rngs.params(), shape, self.dtype))

    def zeros(self, *shape: int) -> nnx.Param:
        """A bias."""
        return nnx.Param(jnp.zeros(shape, self.dtype))

    def ones(self, *shape: int) -> nnx.Param:
        """The scale of a norm."""
        return nnx.Param(jnp.ones(shape, self.dtype))


def normalize_pixels(
    pixel_values: Float[Array, "B P C"] | UInt8[Array, "B P C"], geometry: Geometry
) -> Float[Array, "B P C"]:
    """Scale and normalize uint8 patches as the image processor does; floats pass through."""
    if pixel_values.dtype != jnp.uint8:
        return pixel_values
    per_color = geometry.patch_dim // len(geometry.pixel_mean)
    mean, std = (np.repeat(np.array(x, np.float32), per_color) for x in (geometry.pixel_mean, geometry.pixel_std))
    return (pixel_values.astype(jnp.float32) / 255.0 - mean) / std
