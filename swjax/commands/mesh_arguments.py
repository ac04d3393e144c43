"""The argument --mesh: devices over which a model that streams is divided."""

import argparse
import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from swjax.commands.say import UsageError

if TYPE_CHECKING:  # at run time it is imported where it is used, so that --help is quick
    import jax
    from jax.sharding import Mesh

    from swjax.runs.streaming_model import StreamingModel
    from swjax.storage import AnyPath

AXES = ("data", "fsdp", "tensor")


def add_mesh_argument(parser: argparse.ArgumentParser) -> None:
    """Declare --mesh."""
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N,...",
        help="divide the model over N devices, if one has no room for it: tensor=4 divides heads and features, data=2 "
        "streams; -1 is all devices that are left (default: one device holds all)",
    )


def read_mesh(args: argparse.Namespace, devices: "Sequence[jax.Device] | None" = None) -> "Mesh | None":
    """The mesh that --mesh names.

    Args:
        args: of the verb.
        devices: of which it is made; by default this machine's.

    Raises:
        UsageError: if it names no mesh of these devices.
    """
    if args.mesh is None:
        return None
    import jax

    from swjax.mesh import make_mesh

    sizes: dict[str, int] = {}
    for part in args.mesh.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in AXES or axis in sizes or not ((size.isdecimal() and int(size)) or size == "-1"):
            raise UsageError(f"--mesh {args.mesh}: {part!r} is no axis with a size; write tensor=4 or data=2,tensor=4")
        sizes[axis] = int(size)
    devices = jax.devices() if devices is None else devices
    sizes = {"data": 1, **sizes}
    if -1 not in sizes.values():
        wanted = math.prod(sizes.values())
        if wanted > len(devices):
            raise UsageError(f"--mesh {args.mesh} asks for {wanted} devices, and there are {len(devices)}")
        devices = devices[:wanted]
    try:
        return make_mesh(**sizes, devices=devices)
    except ValueError as error:
        raise UsageError(f"--mesh {args.mesh}: {error}") from error


def load_on_mesh(path: "str | AnyPath", mesh: "Mesh | None", **how: Any) -> "StreamingModel":
    """Load a model for `Weights`, on a mesh each process and device its own part (`load_streaming_model`).

    Args:
        path: as there.
        mesh: from `read_mesh`.
        how: as there.

    Raises:
        UsageError: if the mesh does not divide the model.
    """
    import dataclasses

    from swjax.inference.place import check_mesh, on_mesh
    from swjax.mesh import parameter_shardings
    from swjax.runs.streaming_model import load_streaming_model

    if mesh is None:
        return load_streaming_model(path, **how)
    source = load_streaming_model(path, shardings=functools.partial(parameter_shardings, mesh), **how)
    try:
        check_mesh(mesh, source.model.config)
    except ValueError as error:
        raise UsageError(f"--mesh: {error}") from error
    return dataclasses.replace(source, model=on_mesh(source.model, mesh))
