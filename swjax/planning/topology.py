"""Devices of TPU slices that need not be there, for which the TPU compiler makes programs all the same."""

import os
import re

import jax
from jax.experimental import topologies

LOCAL = "local"
"""Stands in the place of a topology for the devices of this machine."""


class PlanError(ValueError):
    """A plan cannot be made; the message says what to change."""


def open_topology(name: str, *, slices: int = 1) -> list[jax.Device]:
    """The devices of a topology that need not be there.

    Args:
        name: a TPU generation and the shape of a slice, such as v5p:4x4x4; `LOCAL` for the devices of this machine.
        slices: how many of them are joined by the data-centre network.

    Raises:
        PlanError: if the compiler does not know it, or is not installed.
    """
    if slices < 1 or (slices > 1 and name == LOCAL):
        raise PlanError(f"{slices} slices of {name!r} cannot be planned for; give at least 1, and a topology's name")
    if name == LOCAL:
        return jax.devices()
    if not re.fullmatch(r"[\w-]+:\d+(x\d+)*", name):
        raise PlanError(
            f"{name!r} is not a topology; write a TPU generation and the shape of a slice, such as v5p:4x4x4"
        )
    generation, shape = name.split(":")
    if generation in ("v4", "v5p", "tpu7x") and shape.count("x") == 1:
        name += "x1"  # slices of these have three dimensions
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, num_slices=slices).devices)
    except Exception as error:  # of many kinds
        raise PlanError(
            f"the TPU compiler cannot make the topology {name}: {str(error).splitlines()[0]}; is libtpu installed "
            "(pip install 'swjax[tpu]')?"
        ) from error
