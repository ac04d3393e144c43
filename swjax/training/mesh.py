"""The device mesh, and the one table that says how parameters and batches are laid out on it.

A parameter's name spells its axes after the last underscore (`q_weight_dnh`: d model, n heads, h head dim), so a
table from letters to mesh axes shards every model, and no model code knows of a mesh.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")
"""The mesh's axes: `data` repeats the parameters, `fsdp` shards them; batches are split over both."""

AXIS_RULES: dict[str, str] = {"d": "fsdp"}
"""Letter of a parameter's axis -> mesh axis that it is sharded over. Letters not named here are not sharded."""

_log = logging.getLogger(__name__)


def make_mesh(data: int = -1, fsdp: int = 1, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices in a mesh with the axes `data` and `fsdp`.

    Args:
        data: size of the data axis; -1 = all devices that are left.
        fsdp: size of the fsdp axis; -1 = all devices that are left.
        devices: the devices; by default all, of every process.

    Raises:
        ValueError: the sizes do not multiply to the number of devices, or both are -1.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp}
    for name, size in sizes.items():
        if size != -1 and size < 1:
            raise ValueError(f"config.mesh.{name} is {size}; it must be a positive number, or -1 for the devices left")
    known = math.prod(size for size in sizes.values() if size != -1)
    unknown = [name for name, size in sizes.items() if size == -1]
    if len(unknown) > 1:
        raise ValueError("config.mesh.data and config.mesh.fsdp are both -1; at most one may be")
    if unknown:
        sizes[unknown[0]] = len(devices) // known
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"a mesh of config.mesh.data={data} by config.mesh.fsdp={fsdp} does not fit {len(devices)} devices; "
            "make the sizes multiply to it, or set one of them to -1"
        )
    return jax.make_mesh(
        tuple(sizes[axis] for axis in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def parameter_shardings(mesh: Mesh, parameters: Mapping[str, Any]) -> dict[str, NamedSharding]:
    """Lays out parameters by the letters of their names and `AXIS_RULES`.

    An axis that its mesh axis does not divide is left whole, and the log says so once for all such parameters.

    Args:
        mesh: from `make_mesh`.
        parameters: path -> anything with a `shape`.

    Raises:
        ValueError: a name's letters do not fit its array's axes.
    """
    undivided: list[str] = []
    shardings = {}
    for path, array in parameters.items():
        spec: list[str | None] = []
        for letter, size in zip(_axis_letters(path, len(array.shape)), array.shape, strict=True):
            axis = AXIS_RULES.get(letter)
            if axis in spec:
                axis = None  # a mesh axis can shard only one axis of an array
            elif axis is not None and size % mesh.shape[axis]:
                undivided.append(f"{path} ({letter} = {size}, {axis} = {mesh.shape[axis]})")
                axis = None
            spec.append(axis)
        shardings[path] = NamedSharding(mesh, PartitionSpec(*spec))
    if undivided:
        _log.warning("not sharded, because the mesh does not divide them: %s", ", ".join(undivided))
    return shardings


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, *, accumulated: bool = False) -> NamedSharding:
    """The sharding of a batch: rows over all devices.

    Args:
        mesh: from `make_mesh`.
        accumulated: the arrays have a leading axis of micro-batches, [A, B, ...], which is not split.
    """
    return NamedSharding(mesh, PartitionSpec(None, AXES) if accumulated else PartitionSpec(AXES))


def _axis_letters(path: str, ndim: int) -> str:
    """The letters of a parameter's axes; `-` for the leading axis of stacked layers."""
    letters = path.rsplit("/", 1)[-1].rsplit("_", 1)[-1]
    if len(letters) not in (ndim, ndim - 1):
        raise ValueError(
            f"parameter {path} has {ndim} axes, but its name spells {len(letters)} ({letters}): "
            "a name ends in an underscore and one letter an axis"
        )
    return letters.rjust(ndim, "-")
