"""A model's parameters by name: a flat dict from paths such as `decoder/layers/q_weight_dnh` to arrays.

Training, checkpoints and sharding speak of parameters by these names, and know nothing of modules.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from flax import nnx

Parameters = dict[str, Any]
"""Parameter path, its parts joined by `/`, to an array (or to whatever stands for one: a shape, a sharding)."""


def split_parameters(model: nnx.Module) -> tuple[nnx.GraphDef, Parameters]:
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


def merge_parameters(structure: nnx.GraphDef, parameters: Mapping[str, Any]) -> nnx.Module:
    """Puts a module together again: the inverse of `split_parameters`."""
    return nnx.merge(structure, nnx.from_flat_state({_keys(path): leaf for path, leaf in parameters.items()}))


def match_paths(pattern: str, paths: Iterable[str], *, key: str) -> set[str]:
    """The paths that a regular expression matches from their start.

    Args:
        pattern: the expression.
        paths: of parameters.
        key: the key of the configuration that it stands in, for messages.

    Raises:
        ValueError: the expression is not valid or matches no path.
    """
    paths = list(paths)
    try:
        matched = {path for path in paths if re.match(pattern, path)}
    except re.error as error:
        raise ValueError(f"config.{key}: {pattern!r} is not a regular expression: {error}") from error
    if not matched:
        groups = ", ".join(sorted({"/".join(path.split("/")[:2]) for path in paths}))
        raise ValueError(f"config.{key}: {pattern!r} matches no parameter; parameters begin with {groups}")
    return matched


def _keys(path: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in path.split("/"))
