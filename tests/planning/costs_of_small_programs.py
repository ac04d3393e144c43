"""Compiles small programs for four v5e chips and prints what is read off them."""

import os

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "XLA_FLAGS": ""}

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from swjax.planning.hlo import read_costs

devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
one = Mesh(devices[:1], "x")
four = jax.make_mesh((4,), ("fsdp",), axis_types=(AxisType.Auto,), devices=devices)


def shape(mesh, spec, *dims):
    return jax.ShapeDtypeStruct(dims, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(*spec)))


def axes_of(group):
    return ("fsdp",) if len(group) > 1 else ()


def costs(function, *shapes):
    return read_costs(jax.jit(function).lower(*shapes).compile().as_text(), axes_of=axes_of)


def scanned(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def gathered(x, w):
    return jax.lax.with_sharding_constraint(x @ w, NamedSharding(four, PartitionSpec("fsdp")))


scan = costs(scanned, shape(one, (), 64, 256), shape(one, (), 7, 256, 256))
print(f"scan_flops={scan.flops} scan_unknown={scan.unknown_loops}")
batched = costs(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), *[shape(one, (), 4, 128, 128)] * 2)
print(f"batched_flops={batched.flops}")
sent = costs(gathered, shape(four, ("fsdp",), 4096, 512), shape(four, ("fsdp",), 512, 512)).sent
print(f"gathered={sent.get(('fsdp',), 0)}")
