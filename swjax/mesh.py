"""The device mesh, and the one table that says how parameters, batches and activations are laid out on it.

A parameter's name spells its axes after the last underscore (`q_weight_dnh`: d model, n heads, h head dim), and a model
spells the axes of its activations where it makes them ("BLNH"). A table from letters to mesh axes shards both, and no
model code knows of a mesh.
"""

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from swjax.compiler import HEADS_OUTERMOST, in_order

AXES = ("data", "fsdp", "context", "tensor")
"""The mesh's axes, from the one along which least is sent to the one along which most is.

`data` repeats parameters; `fsdp` shards them; batches are split by rows over both. `context` cuts rows along the
sequence, and `tensor` cuts heads and feed-forward features.
"""

AXIS_RULES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # Axes of parameters.
        "d": ("fsdp", "context"),
        "m": ("fsdp", "context"),
        "n": ("tensor",),
        "k": ("tensor",),
        "f": ("tensor",),
        "v": ("tensor",),
        # Axes of batches and activations (`swjax.models.layers.Constrain`).
        "B": ("data", "fsdp"),
        "L": ("context",),
        "P": ("context", "tensor"),
        "N": ("tensor",),
        "K": ("tensor",),
        "F": ("tensor",),
        "V": ("tensor",),
        "R": ("data",),
        "S": ("context",),
        "E": ("context", "tensor"),
    }
)
"""Letter of an axis -> mesh axes that it is divided over. Letters not named here are not divided.

A mesh axis divides only one axis of an array, the first that asks for it. So a vision tower's patches, divided over all
axes, leave none for its heads: there, tensor-sharded weights are gathered as fsdp-sharded ones are.

In a weight of axes fd, f asks for what d asks for, too, if all of it divides f: parts of the first axis are gathered
one behind the other, and parts of the last would be put together by a copy of the whole weight, which can take longer
than the product.
"""

BATCH_AXES: Mapping[str, str] = MappingProxyType(
    {
        "token_ids": "BL",
        "position_ids": "B-L",
        "span_start": "BL",
        "span_stop": "BL",
        "labels": "BL",
        "slots": "BL",
        "pixel_values": "BP-",
        "video_grid_thw": "B--",
        "kept": "B-",
    }
)
"""The axes of a batch's arrays."""

KEPT_ORDERS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"BLD": (0, 1, 2), "BLNH": HEADS_OUTERMOST, "BLKH": HEADS_OUTERMOST}
)
"""Activations that the layers of a decoder keep for the backward pass, and how they lie in memory on TPUs.

None of the vision tower: where it is frozen nothing is kept, and biases are added before anything is written.
"""

_log = logging.getLogger(__name__)


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    context: int = 1,
    tensor: int = 1,
    *,
    slices: int = -1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Arranges devices in a mesh with the axes `AXES`.

    Args:
        data, fsdp, context, tensor: sizes of the axes; one of them may be -1, for all devices that are left.
        slices: TPU slices, or hosts elsewhere, that are joined by the data-centre network; the data axis runs over them
            and all other axes stay within one. -1 = as many slices as the devices say that they are of.
        devices: the devices; by default all, of every process.

    Raises:
        ValueError: the sizes do not multiply to the number of devices, do not fit the sides of a slice, the slices do
            not divide `data`, or more than one size is -1.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(zip(AXES, (data, fsdp, context, tensor), strict=True))
    for name, size in {**sizes, "slices": slices}.items():
        if size != -1 and size < 1:
            raise ValueError(f"config.mesh.{name} is {size}; it must be a positive number, or -1 for the devices left")
    known = math.prod(size for size in sizes.values() if size != -1)
    unknown = [name for name, size in sizes.items() if size == -1]
    asked = " by ".join(f"config.mesh.{name}={size}" for name, size in sizes.items())
    if len(unknown) > 1:
        raise ValueError(f"{' and '.join(f'config.mesh.{name}' for name in unknown)} are -1; at most one may be")
    if unknown:
        sizes[unknown[0]] = len(devices) // known
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"a mesh of {asked} does not fit {len(devices)} devices; "
            "make the sizes multiply to it, or set one of them to -1"
        )
    known_slices = len({getattr(device, "slice_index", 0) for device in devices})
    slices = known_slices if slices == -1 else slices
    shape, axis_types = tuple(sizes.values()), (AxisType.Auto,) * len(AXES)
    if slices == 1:
        try:
            return jax.make_mesh(shape, AXES, axis_types=axis_types, devices=devices)
        except NotImplementedError as error:
            raise ValueError(
                f"a mesh of {asked} cannot be laid out along the links of this slice; make each size a product of some "
                "of the slice's sides, such as 4, 16 or 64 of 4x4x4"
            ) from error
    if sizes["data"] % slices:
        raise ValueError(f"config.mesh.data is {sizes['data']}; the {slices} slices must divide it")
    arranged = mesh_utils.create_hybrid_device_mesh(
        (sizes["data"] // slices, *shape[1:]),
        (slices, 1, 1, 1),
        devices,
        # Beside TPUs, JAX takes all processes of a machine for one slice; here each may stand for one.
        process_is_granule=devices[0].platform != "tpu" and known_slices != slices,
    )
    return Mesh(arranged, AXES, axis_types=axis_types)


def parameter_shardings(mesh: Mesh, parameters: Mapping[str, Array | jax.ShapeDtypeStruct]) -> dict[str, NamedSharding]:
    """Lays out parameters by the letters of their names and `AXIS_RULES`.

    An axis that its mesh axes do not divide is left whole, and the log says so once for all such parameters.

    Args:
        mesh: from `make_mesh`.
        parameters: path -> anything with a `shape`.

    Raises:
        ValueError: a name's letters do not fit its array's axes.
    """
    undivided: list[str] = []
    shardings = {}
    for path, array in parameters.items():
        spec, left = _divide(mesh, _axis_letters(path, len(array.shape)), array.shape)
        undivided += [f"{path} ({reason})" for reason in left]
        shardings[path] = NamedSharding(mesh, spec)
    if undivided:
        _log.warning("not sharded, because the mesh does not divide them: %s", ", ".join(undivided))
    return shardings


def array_sharding(mesh: Mesh, axes: str, shape: Sequence[int]) -> NamedSharding:
    """The sharding of an array by the letters of its axes and `AXIS_RULES`; what the mesh does not divide stays whole.

    Args:
        mesh: from `make_mesh`.
        axes: a letter for each axis.
        shape: of the array.
    """
    return NamedSharding(mesh, _divide(mesh, axes, shape)[0])


@dataclass(frozen=True)
class ConstrainOnMesh:
    """What a model lays its activations out with: `constrain(x, "BLD")`. Hashable by value.

    Attributes:
        mesh: from `make_mesh`.
        pins_layouts: whether what a decoder's layers keep for the backward pass is to lie in memory as it is read there
            (`KEPT_ORDERS`), which costs more than it saves where nothing is kept.
    """

    mesh: Mesh
    pins_layouts: bool = False

    def __call__(self, x: Array, axes: str) -> Array:
        """The same array, divided by `AXIS_RULES`; an axis that the mesh does not divide is left whole, and logged."""
        spec, left = _divide(self.mesh, axes, x.shape)
        for reason in left:
            _warn_once(reason, axes)
        x = jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))
        if not self.pins_layouts or axes not in KEPT_ORDERS:
            return x
        pinned = functools.partial(in_order, order=KEPT_ORDERS[axes])
        return jax.shard_map(pinned, mesh=self.mesh, in_specs=spec, out_specs=spec)(x)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(
    mesh: Mesh,
    name: str,
    shape: tuple[int, ...],
    *,
    accumulated: bool = False,
    axes: Mapping[str, str] = BATCH_AXES,
) -> NamedSharding:
    """The sharding of one of a batch's arrays.

    Args:
        mesh: from `make_mesh`.
        name: one of `axes`.
        shape: [B, ...], or [A, B, ...].
        accumulated: the array has a leading axis of micro-batches, which is not split.
        axes: those of the batch's arrays.

    Raises:
        ValueError: the mesh does not divide the array.
    """
    spec, left = _divide(mesh, "-" * accumulated + axes[name], shape)
    if left:
        raise ValueError(f"{name} of shape {shape} does not fit the mesh: {', '.join(left)}")
    return NamedSharding(mesh, spec)


def row_share(mesh: Mesh) -> tuple[int, int]:
    """Which part of a batch's rows this process reads, and how many parts there are.

    Processes whose devices hold the same rows, because a row is cut over them, read the same part.

    Raises:
        ValueError: processes share some rows but not all.
    """
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    held: dict[int, set[int]] = {}
    for row, devices in enumerate(mesh.devices.reshape(rows, -1)):
        for device in devices:
            held.setdefault(device.process_index, set()).add(row)
    parts = sorted({tuple(sorted(part)) for part in held.values()})
    if sum(map(len, parts)) != rows or len({len(part) for part in parts}) > 1:
        raise ValueError(
            f"the mesh {dict(mesh.shape)} gives processes rows that overlap in part; make config.mesh.context times "
            "config.mesh.tensor divide the devices of a process, or be a multiple of them"
        )
    mine = tuple(sorted(held[jax.process_index()]))
    return parts.index(mine), len(parts)


def choose_stripe(mesh: Mesh, lengths: Sequence[int], *, most: int = 128) -> int | None:
    """Slots of a stripe in which rows are dealt out along the context axis (`swjax.attention.stripe_order`).

    The widest power of two that deals every row out whole, twice over where that can be; None without a context axis.

    Args:
        mesh: from `make_mesh`.
        lengths: slots of the rows that there are.
        most: widest stripe. Thinner ones level the work better, and make kernels read more keys than they need.

    Raises:
        ValueError: the context axis does not divide a row.
    """
    shards = mesh.shape["context"]
    if shards == 1:
        return None
    slots = math.gcd(*lengths)
    if slots % shards:
        raise ValueError(
            f"rows of {', '.join(map(str, lengths))} slots cannot be cut into config.mesh.context={shards}"
        )
    a_shard = slots // shards
    even = a_shard // 2 if a_shard % 2 == 0 else a_shard
    return min(even & -even, most)


def _divide(mesh: Mesh, letters: str, shape: Sequence[int]) -> tuple[PartitionSpec, list[str]]:
    """The layout of an array by its letters, and which axes are divided by less than the table says."""
    spec: list[str | tuple[str, ...] | None] = []
    left, used = [], set()
    for number, (letter, size) in enumerate(zip(letters, shape, strict=True)):
        rule = AXIS_RULES.get(letter, ())
        if letters[number:] == "fd" and size % math.prod(mesh.shape[axis] for axis in rule + AXIS_RULES["d"]) == 0:
            rule += AXIS_RULES["d"]
        asked = [axis for axis in rule if mesh.shape[axis] > 1 and axis not in used]
        axes = list(asked)
        while size % math.prod(mesh.shape[axis] for axis in axes):
            axes.pop()
        if axes != asked:
            left.append(f"{letter} = {size}, {' x '.join(f'{axis} = {mesh.shape[axis]}' for axis in asked)}")
        used.update(axes)
        spec.append(tuple(axes) if len(axes) > 1 else axes[0] if axes else None)
    return PartitionSpec(*spec), left


@functools.cache
def _warn_once(reason: str, axes: str) -> None:
    _log.warning("not sharded, because the mesh does not divide it: axis %s of an activation %s", reason, axes)


def _axis_letters(path: str, ndim: int) -> str:
    """The letters of a parameter's axes; `-` for the leading axis of stacked layers."""
    letters = path.rsplit("/", 1)[-1].rsplit("_", 1)[-1]
    if len(letters) not in (ndim, ndim - 1):
        raise ValueError(
            f"parameter {path} has {ndim} axes, but its name spells {len(letters)} ({letters}): "
            "a name ends in an underscore and one letter an axis"
        )
    return letters.rjust(ndim, "-")
