"""A model's parameters by name: a flat dict from paths such as `decoder/layers/q_weight_dnh` to arrays.

Training, checkpoints and sharding speak of parameters by these names, and know nothing of modules.
"""

import functools
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

Model = TypeVar("Model", bound=nnx.Module)

Parameters = dict[str, Any]
"""Parameter path, its parts joined by `/`, to an array (or to whatever stands for one: a shape, a sharding)."""

Leaves = Mapping[str, Any]
"""`Parameters` that are read alone."""


def split_parameters(model: Model) -> tuple[nnx.GraphDef[Model], Parameters]:
    """Takes a module apart into its structure and its parameters.

    Args:
        model: a module, real or abstract (from `nnx.eval_shape`). All of its variables must be `nnx.Param`.

    Returns:
        The structure, hashable, and the parameters by path in the module's own order.

    Raises:
        ValueError: the module holds variables that are not parameters.
    """
    structure, state = nnx.split(model, nnx.Param)
    return structure, {"/".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def merge_parameters(structure: nnx.GraphDef[Model], parameters: Leaves) -> Model:
    """Puts a module together again: the inverse of `split_parameters`."""
    flat: dict[tuple[Any, ...], Any] = {_keys(path): leaf for path, leaf in parameters.items()}
    return nnx.merge(structure, nnx.from_flat_state(flat))


_HEADS_OF_BLOCKS = re.compile(r"(^|/)blocks/(.*/)?(qkv|o)_")
"""A vision tower's products into and out of heads, between which there is nothing but rotation and attention."""


def widened(parameters: Leaves, tiles: Mapping[str, int]) -> Parameters:
    """Parameters in which axes that lie inside of a layer are filled up with zeros to a multiple of a tile.

    The model computes the same. Of f, the widths inside of MLPs, what zeros give, silu(0) 0 or gelu(0), meets zeros in
    the next product: without it cuBLAS is given copies of weights and activations that are padded for each product
    whose width it cannot take. Of h, the heads of vision towers, both halves are filled, as features i and i + h / 2
    turn together: heads of 80 features lie in 128 lanes of a TPU in any case, and are moved from one to the other way
    of lying there by each operation around attention.

    Args:
        parameters: by path; the last part of a name, behind its last underscore, has a letter for each trailing axis.
        tiles: axis, f or h -> what it becomes a multiple of.
    """

    def widen(path: str, leaf: Array | jax.ShapeDtypeStruct) -> Array | jax.ShapeDtypeStruct:
        axes = path.rpartition("_")[2]
        for axis, tile in tiles.items():
            if axis in axes and (axis != "h" or _HEADS_OF_BLOCKS.search(path)):
                fill = functools.partial(_filled, at=axes.index(axis) - len(axes), tile=tile, halves=1 + (axis == "h"))
                leaf = jax.eval_shape(fill, leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else fill(leaf)
        return leaf

    return {path: widen(path, leaf) for path, leaf in parameters.items()}


def _filled(leaf: Array, *, at: int, tile: int, halves: int) -> Array:
    """An array whose axis `at`, counted from behind, is a multiple of the tile, each half, or the whole, filled up."""
    size = leaf.shape[at]
    short = -size % tile
    if not short:
        return leaf
    shape = leaf.shape
    behind = shape[leaf.ndim + at + 1 :]
    parts = leaf.reshape(*shape[:at], halves, size // halves, *behind)
    widths = [(0, 0)] * parts.ndim
    widths[at] = (0, short // halves)
    return jnp.pad(parts, widths).reshape(*shape[:at], size + short, *behind)


HUB_NAMES = {
    **{
        f"{name}_proj": f"decoder/layers/{name}_(weight|bias|lora)"
        for name in ("q", "k", "v", "o", "gate", "up", "down")
    },
    "embed_tokens": "decoder/embedding",
    "lm_head": "decoder/head",
    "all-linear": "decoder/layers/",
}
"""Names of the decoder's modules on the hub, which stand for a regular expression of ours."""


def match_paths(pattern: str, paths: Iterable[str], *, key: str) -> set[str]:
    """The paths that a regular expression matches from their start.

    Args:
        pattern: the expression, or a name of `HUB_NAMES`.
        paths: of parameters.
        key: the key of the configuration that it stands in, for messages.

    Raises:
        ValueError: the expression is not valid or matches no path.
    """
    paths = list(paths)
    try:
        matched = {path for path in paths if re.match(HUB_NAMES.get(pattern, pattern), path)}
    except re.error as error:
        raise ValueError(f"config.{key}: {pattern!r} is not a regular expression: {error}") from error
    if not matched:
        groups = ", ".join(sorted({"/".join(path.split("/")[:2]) for path in paths}))
        raise ValueError(f"config.{key}: {pattern!r} matches no parameter; parameters begin with {groups}")
    return matched


def match_all(patterns: Iterable[str], paths: Iterable[str], *, key: str) -> set[str]:
    """The paths that one of several expressions matches; see `match_paths`.

    Args:
        patterns: the expressions, or names of `HUB_NAMES`; none match nothing.
        paths: of parameters.
        key: the key of the configuration that they stand in, for messages.

    Raises:
        ValueError: an expression is not valid or matches no path.
    """
    paths = list(paths)
    return {path for pattern in patterns for path in match_paths(pattern, paths, key=key)}


def fingerprint(parameters: Leaves) -> str:
    """Sixteen hexadecimal digits that change when any bit of any parameter does, wherever the parameters lie.

    Bits are summed as integers on the devices, so neither sharding nor the order of a sum changes the result.
    """
    sums = jax.device_get({path: _sum_of_bits(leaf) for path, leaf in parameters.items()})
    digest = hashlib.sha256()
    for path in sorted(sums):
        digest.update(f"{path} {parameters[path].shape} {parameters[path].dtype} {sums[path].tolist()};".encode())
    return digest.hexdigest()[:16]


@jax.jit
def _sum_of_bits(leaf: jax.Array) -> jax.Array:
    """Two sums modulo 2^32: of all bits, and weighted by the place in the last axis, so that swaps show."""
    unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(jnp.atleast_1d(leaf), unsigned).astype(jnp.uint32)
    weights = 2 * jnp.arange(bits.shape[-1], dtype=jnp.uint32) + 1
    return jnp.stack([jnp.sum(bits, dtype=jnp.uint32), jnp.sum(bits * weights, dtype=jnp.uint32)])


def _keys(path: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in path.split("/"))
