"""One of several processes that load a checkpoint together and save it again; started by a test.

python two_processes.py COORDINATOR PROCESSES PROCESS SOURCE OUTPUT
"""

import functools
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from swjax.hub import files, load_hf, save_hf
from swjax.models.parameters import split_parameters


def spread(mesh, shapes):
    """Over all devices, along the last axis that they divide."""
    found = {}
    for path, leaf in shapes.items():
        axes = [axis for axis, size in enumerate(leaf.shape) if size % jax.device_count() == 0]
        spec = ["all" if axes and axis == axes[-1] else None for axis in range(len(leaf.shape))]
        found[path] = NamedSharding(mesh, PartitionSpec(*spec))
    return found


def count_bytes_read():
    """Returns a list to which the size of whatever is read from now on is added."""
    sizes, read = [], files.FileTensor.read

    def counted(tensor, index):
        array = read(tensor, index)
        sizes.append(array.nbytes)
        return array

    files.FileTensor.read = counted
    return sizes


coordinator, processes, process, source, output = sys.argv[1:]
jax.distributed.initialize(coordinator, int(processes), int(process))
sizes = count_bytes_read()
mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
model = load_hf(source, shardings=functools.partial(spread, mesh))
parameters = split_parameters(model)[1]
total = sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in parameters.values())
save_hf(model, output, max_shard_size="200KB")
print(f"read {sum(sizes) / total:.3f}")
