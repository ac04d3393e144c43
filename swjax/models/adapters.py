"""Low-rank adapters (LoRA, https://arxiv.org/abs/2106.09685): which parameters they are, and what they add.

An adapter of the weight W is two parameters beside it: A takes W's inputs to `rank` numbers, B these to its outputs,
and the model computes x W + alpha / rank * (x A) B, which is x (W + alpha / rank * A B). They are stacked over layers
like W, and named like it with the letter r for the rank, so that whatever reads the letters, as sharding does, treats
them as any other: beside `decoder/layers/o_weight_nhd` stand `decoder/layers/o_lora_a_nhr` and
`decoder/layers/o_lora_b_rd`.

DoRA (https://arxiv.org/abs/2402.09353, equation 5) adds a third parameter, the length m of each output's weights,
`decoder/layers/o_lora_m_d`: the model computes with m V / ||V||, where V is W and what A and B add to it, and ||V|| has
the length of each output's weights in V. The gradient takes ||V|| for a constant (section 4.3).

An adapted weight does not train, so it may be held in int8 with a scale for each of its outputs beside it,
`decoder/layers/o_scale_d` (as in QLoRA, https://arxiv.org/abs/2305.14314, but with twice its bits and no table to look
numbers up in).
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import EllipsisType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Key, PRNGKeyArray

from swjax.models.parameters import Leaves, Parameters, match_paths
from swjax.models.stored import Block, StoredArray

Shape = tuple[int, ...]

# A linear layer's axes: those that it contracts and those that remain, heads together; c is a convolution on the hub.
_LINEAR = re.compile(r".*(?:_weight|(/head))_([xnkh]+|[^cxnkh])([xnkh]+|[^cxnkh])")


def effective_alpha(alpha: float, rank: int, *, rslora: bool) -> float:
    """The numerator of a scale over the rank: rsLoRA's scale is alpha / sqrt(rank) (https://arxiv.org/abs/2312.03732).

    Args:
        alpha: as configured.
        rank: of the adapters.
        rslora: whether the scale is over the square root of the rank.
    """
    return alpha * math.sqrt(rank) if rslora else alpha


def linear_axes(path: str) -> tuple[str, str] | None:
    """Letters of the axes that a linear layer's weight contracts, and of those that remain; None for other parameters.

    Args:
        path: of a parameter, whose name spells its axes (`swjax.models.layers`).
    """
    found = _LINEAR.fullmatch(path)
    if found is None:
        return None
    head, first, second = found.groups()
    return (second, first) if head else (first, second)


def choose_targets(targets: Sequence[str], paths: Iterable[str]) -> list[str]:
    """The weights that are adapted.

    Args:
        targets: regular expressions, matched from the start of a path (`config.lora.targets`).
        paths: those of the model's parameters.

    Raises:
        ValueError: an expression is not valid or matches no weight of a linear layer, or there is none.
    """
    linear = [path for path in paths if linear_axes(path)]
    chosen = {path for target in targets for path in match_paths(target, linear, key="lora.targets")}
    if not chosen:
        raise ValueError("config.lora.targets is empty; name the weights to adapt, or set config.lora.rank to 0")
    return [path for path in linear if path in chosen]


def adapter_paths(path: str) -> tuple[str, str]:
    """The paths of A and B for a weight's path."""
    inputs, outputs = _axes(path)
    return f"{_stem(path)}_lora_a_{inputs}r", f"{_stem(path)}_lora_b_r{outputs}"


def magnitude_path(path: str) -> str:
    """The path of DoRA's magnitudes for a weight's path."""
    return f"{_stem(path)}_lora_m_{_axes(path)[1]}"


def scale_path(path: str) -> str:
    """The path of the scales of a weight that is held in int8."""
    return f"{_stem(path)}_scale_{_axes(path)[1]}"


def in_int8(parameters: Leaves, targets: Iterable[str]) -> Parameters:
    """Parameters with some weights in int8, each with its scales beside it, in the dtype that the weight had. Pure.

    A scale is a 127th of the largest number of an output's; one that is rounded makes all of its numbers smaller or
    larger before they are, so it adds no error of its own.

    Args:
        parameters: of a model, by path.
        targets: paths of weights, from `choose_targets`.
    """
    held = dict(parameters)
    for path in targets:
        weight, contracted = parameters[path], _contracted_axes(path, parameters[path].ndim)
        largest = jnp.abs(weight).max(axis=contracted)
        scale = jnp.where(largest == 0, 1, largest.astype(jnp.float32) / 127).astype(weight.dtype)
        whole = weight.astype(jnp.float32) / jnp.expand_dims(scale, contracted).astype(jnp.float32)
        held[path] = jnp.clip(jnp.round(whole), -127, 127).astype(jnp.int8)
        held[scale_path(path)] = scale
    return held


def adapter_shapes(
    shapes: Mapping[str, Shape], targets: Sequence[str], rank: int, *, dora: bool = False
) -> dict[str, Shape]:
    """Path -> shape of the adapters of some weights.

    Args:
        shapes: path -> shape of the model's parameters.
        targets: paths of weights, from `choose_targets`.
        rank: of every adapter.
        dora: whether they have magnitudes.
    """
    found: dict[str, Shape] = {}
    for path in targets:
        (inputs, outputs), letters = _axes(path), path.rsplit("_", 1)[1]
        layers = shapes[path][: len(shapes[path]) - len(letters)]
        sizes = dict(zip(letters, shapes[path][len(layers) :], strict=True)) | {"r": rank}
        a, b = adapter_paths(path)
        found[a] = (*layers, *(sizes[letter] for letter in f"{inputs}r"))
        found[b] = (*layers, *(sizes[letter] for letter in f"r{outputs}"))
        if dora:
            found[magnitude_path(path)] = (*layers, *(sizes[letter] for letter in outputs))
    return found


def new_adapters(
    shapes: Mapping[str, Shape], targets: Sequence[str], *, rank: int, key: PRNGKeyArray
) -> dict[str, Array]:
    """Adapters that change nothing yet, in float32: A uniform within 1 / sqrt(inputs) as PEFT draws it, B zero.

    Args:
        shapes: of the parameters, by path.
        targets: paths of the weights that adapt.
        rank: of the adapters.
        key: of their values.
    """
    adapters: dict[str, Array] = {}
    for number, (path, shape) in enumerate(adapter_shapes(shapes, targets, rank).items()):
        if "_lora_b_" in path:
            adapters[path] = jnp.zeros(shape, jnp.float32)
            continue
        stacked = len(shape) - len(path.rsplit("_", 1)[1])
        bound = 1 / math.sqrt(math.prod(shape[stacked:-1]))
        adapters[path] = jax.random.uniform(jax.random.fold_in(key, number), shape, jnp.float32, -bound, bound)
    return adapters


def new_magnitudes(parameters: Leaves, targets: Iterable[str]) -> dict[str, Array]:
    """DoRA's magnitudes that change nothing yet, in float32: the lengths of each output's weights, in int8 or not."""
    found: dict[str, Array] = {}
    for path in targets:
        contracted = _contracted_axes(path, parameters[path].ndim)
        lengths = jnp.sqrt(jnp.square(parameters[path].astype(jnp.float32)).sum(contracted))
        found[magnitude_path(path)] = lengths * parameters.get(scale_path(path), 1)
    return found


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AdaptedWeight:
    """A weight and its adapter, in the place of an array.

    A projection adds the adapter's own product (`swjax.models.layers.project`), so that no gradient of a whole weight
    is ever made. Whatever else reads the weight, `weight[...]`, gets the sum.

    Attributes:
        weight: of the model; it may have a leading axis of layers, which the adapter then has too.
        down, up: A and B.
        path: of the weight.
        alpha: numerator of the scale.
        dtype: of the computations.
        scale: of each output, where the weight is held in int8; otherwise None.
        magnitude: DoRA's m, of each output; None for LoRA.
        key: of the random numbers by which inputs of A are dropped; None drops none.
        dropout: the share of these inputs that is dropped, where there is a key.
    """

    weight: Array
    down: Array
    up: Array
    scale: Array | None
    magnitude: Array | None
    key: Key[Array, "*layers"] | None
    path: str = field(metadata={"static": True})
    alpha: float = field(metadata={"static": True})
    dtype: DTypeLike = field(metadata={"static": True})
    dropout: float = field(metadata={"static": True})

    @property
    def shape(self) -> Shape:
        """That of the weight."""
        return self.weight.shape

    def part(self, number: int) -> "AdaptedWeight":
        """One of several products whose axis is the first of the outputs.

        Args:
            number: of the product.
        """
        inputs, outputs = _axes(self.path)

        def of(array: Array) -> Array:
            return jax.lax.index_in_dim(array, number, axis=array.ndim - len(outputs), keepdims=False)

        return replace(
            self,
            weight=of(self.weight),
            up=of(self.up),
            scale=None if self.scale is None else of(self.scale),
            magnitude=None if self.magnitude is None else of(self.magnitude),
            path=f"{self.path.rpartition('_')[0]}_{inputs}{outputs[1:]}",
        )

    @property
    def scaled_down(self) -> Array:
        """A times the scale, which in float32 costs nothing and leaves no number of a product to be scaled."""
        return self.down * (self.alpha / self.down.shape[-1])

    def dropped(self, x: Array) -> Array:
        """The inputs of A: in training some are zero and the others larger, so that the mean stays what it was.

        Args:
            x: inputs of the weight.
        """
        if self.key is None:
            return x
        kept = jax.random.bernoulli(self.key, 1 - self.dropout, x.shape)
        return jnp.where(kept, x / (1 - self.dropout), 0).astype(x.dtype)

    @property
    def gain(self) -> Array | None:
        """What DoRA multiplies each output by, m / ||V||; None for LoRA."""
        return None if self.magnitude is None else self.magnitude / self._lengths(self._changed())

    def _lengths(self, changed: Array) -> Array:
        """||V||, a constant to the gradient; 1 where it is 0."""
        lengths = jnp.sqrt(jnp.square(changed).sum(_contracted_axes(self.path, changed.ndim)))
        return jax.lax.stop_gradient(jnp.where(lengths == 0, 1, lengths))

    def _changed(self) -> Array:
        """The weight and what A and B add to it, in float32."""
        # Every process, and the export, must come to the same weights: no bfloat16 passes on a TPU.
        axes = _product_axes(self.path, self.weight.ndim)
        product = jnp.einsum(axes, self.scaled_down, self.up, precision=jax.lax.Precision.HIGHEST)
        weight = self.weight
        if self.scale is not None:
            weight = weight * jnp.expand_dims(self.scale, _contracted_axes(self.path, weight.ndim))
        return weight + product

    def __getitem__(self, index: slice | EllipsisType) -> Array:
        changed = self._changed()
        if self.magnitude is not None:
            gain = self.magnitude / self._lengths(changed)
            changed = changed * jnp.expand_dims(gain, _contracted_axes(self.path, changed.ndim))
        return changed.astype(self.dtype)[index]


def attach_adapters(
    parameters: Leaves,
    *,
    alpha: float,
    dtype: DTypeLike,
    dropout: float = 0.0,
    key: PRNGKeyArray | None = None,
) -> Parameters:
    """The parameters of the plain model in the dtype that it computes in, adapted weights as `AdaptedWeight`.

    So no model knows of adapters.

    Args:
        parameters: of the model and of its adapters, if it has any, by path.
        alpha: numerator of the scale of what is added (`config.lora.alpha`).
        dtype: of the computations.
        dropout: share of the inputs of every adapter that is dropped, each adapter's and layer's by themselves.
        key: of what is dropped; None drops nothing, as in evaluation.
    """
    attached: Parameters = {}
    for number, (path, leaf) in enumerate(sorted(parameters.items())):
        if is_beside(path):
            continue
        a, b = adapter_paths(path) if linear_axes(path) else ("", "")
        if a in parameters:
            scale, magnitude = parameters.get(scale_path(path)), parameters.get(magnitude_path(path))
            keys = None
            if dropout and key is not None:
                layers = leaf.shape[: leaf.ndim - len(path.rsplit("_", 1)[1])]
                keys = jax.random.split(jax.random.fold_in(key, number), layers)
            attached[path] = AdaptedWeight(
                leaf, parameters[a], parameters[b], scale, magnitude, keys, path, alpha, jnp.dtype(dtype), dropout
            )
        else:
            attached[path] = leaf.astype(dtype)
    return attached


def merge_stored(stored: Mapping[str, StoredArray], *, alpha: float) -> dict[str, StoredArray]:
    """The plain model's parameters on disk: a weight gets what its adapter adds, block by block when it is read.

    Args:
        stored: the model's parameters and those of its adapters, by path.
        alpha: numerator of the scale of what is added.
    """
    merged = {path: array for path, array in stored.items() if not is_beside(path)}
    for path in [path for path in merged if linear_axes(path)]:
        a, b = adapter_paths(path)
        if scale_path(path) in stored:
            merged[path] = _scaled(path, stored[path], stored[scale_path(path)])
        if a in stored:
            merged[path] = _merged(path, merged[path], stored[a], stored[b], stored.get(magnitude_path(path)), alpha)
    return merged


def _scaled(path: str, weight: StoredArray, scale: StoredArray) -> StoredArray:
    contracted = _contracted_axes(path, len(weight.shape))

    def read(block: Block) -> np.ndarray:
        scales = scale.read(tuple(part for axis, part in enumerate(block) if axis not in contracted))
        numbers = weight.read(block) * np.expand_dims(scales.astype(np.float32), contracted)
        return numbers.astype(scale.dtype)

    return StoredArray(weight.shape, scale.dtype, read, weight.rows)


def _merged(
    path: str, weight: StoredArray, a: StoredArray, b: StoredArray, magnitude: StoredArray | None, alpha: float
) -> StoredArray:
    (inputs, outputs), letters = _axes(path), path.rsplit("_", 1)[1]
    stacked = len(weight.shape) - len(letters)
    axes, rank = _product_axes(path, len(weight.shape)), a.shape[-1]
    contracted, lengths = _contracted_axes(path, len(weight.shape)), dict[str, np.ndarray]()

    def changed(block: Block) -> np.ndarray:
        layers, parts = block[:stacked], dict(zip(letters, block[stacked:], strict=True)) | {"r": slice(0, rank)}
        down = a.read((*layers, *(parts[letter] for letter in f"{inputs}r")))
        up = b.read((*layers, *(parts[letter] for letter in f"r{outputs}")))
        return weight.read(block) + np.float32(alpha / rank) * np.einsum(axes, down, up, optimize=True)

    def read(block: Block) -> np.ndarray:
        merged = changed(block)
        if magnitude is not None:
            outputs = tuple(part for axis, part in enumerate(block) if axis not in contracted)
            if str(outputs) not in lengths:  # once for all blocks of these outputs
                whole = [slice(0, weight.shape[axis]) if axis in contracted else one for axis, one in enumerate(block)]
                found = np.sqrt(np.square(changed(tuple(whole))).sum(contracted))
                lengths[str(outputs)] = np.where(found == 0, 1, found)
            merged = merged * np.expand_dims(magnitude.read(outputs) / lengths[str(outputs)], contracted)
        return merged.astype(weight.dtype, copy=False)  # frozen weights have the dtype that the run computes in

    return StoredArray(weight.shape, weight.dtype, read, weight.rows)


def _product_axes(path: str, ndim: int) -> str:
    """What `einsum` is told to make A B with the axes of the weight; l is the axis of stacked layers."""
    (inputs, outputs), letters = _axes(path), path.rsplit("_", 1)[1]
    layers = "l" * (ndim - len(letters))
    return f"{layers}{inputs}r,{layers}r{outputs}->{layers}{letters}"


def _contracted_axes(path: str, ndim: int) -> tuple[int, ...]:
    """Where a weight of so many axes has those that it contracts."""
    inputs, letters = _axes(path)[0], path.rsplit("_", 1)[1]
    return tuple(ndim - len(letters) + letters.index(letter) for letter in inputs)


def _stem(path: str) -> str:
    return path.rsplit("_", 1)[0].removesuffix("_weight")


def _axes(path: str) -> tuple[str, str]:
    found = linear_axes(path)
    if found is None:
        raise ValueError(f"{path} is no weight of a linear layer")
    return found


def is_adapter(path: str) -> bool:
    """Whether a parameter is one of an adapter."""
    return any(name in path for name in ("_lora_a_", "_lora_b_", "_lora_m_"))


def is_beside(path: str) -> bool:
    """Whether a parameter stands beside a weight of the plain model: one of an adapter, or its scales in int8."""
    return is_adapter(path) or "_scale_" in path
