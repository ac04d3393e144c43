"""Compiles span attention ahead of time for a TPU topology and prints what came of it, as JSON a line.

A program of its own, because a process can hold one TPU compiler only, and the test process none.
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from swjax.attention import AttentionSharding, cache_attention, span_attention
from swjax.streaming import KeySpans

LAYERS = 3
CASES = {
    # batch, queries, keys, heads, key heads, head dim, dtype, gradients
    "decoder": (1, 32768, 32768, 28, 4, 128, jnp.bfloat16, True),
    "vision": (1, 32768, 32768, 16, 16, 80, jnp.bfloat16, True),
    "a row": (1, 8192, 8192, 28, 4, 128, jnp.bfloat16, True),
    "the longest row": (1, 16384, 16384, 28, 4, 128, jnp.bfloat16, True),  # whose gradients of keys one kernel holds
    "one step": (1, 1, 32768, 28, 4, 128, jnp.bfloat16, False),  # without gradients: to a cache of some layers
    "eight steps": (2, 8, 32768, 28, 4, 128, jnp.bfloat16, False),
    "ends inside of blocks": (2, 3001, 4001, 4, 2, 64, jnp.bfloat16, True),
    "float32": (1, 512, 512, 2, 2, 64, jnp.float32, True),
    "context": (1, 32768, 32768, 28, 4, 128, jnp.bfloat16, True),
}


def attention(q, k, v, spans, *, sharding, gradients):
    if not gradients:
        return cache_attention(q, k, v, spans.start[0, 0] % LAYERS, spans)
    function = functools.partial(span_attention, spans=spans, sharding=sharding)
    return jax.grad(lambda *qkv: function(*qkv).astype(jnp.float32).sum(), argnums=(0, 1, 2))(q, k, v)


def compile_case(name, devices):
    batch, queries, keys, heads, key_heads, head_dim, dtype, gradients = CASES[name]
    devices = devices if name == "context" else devices[:1]
    mesh = Mesh(np.array(devices), ("context",))
    sharding = AttentionSharding(mesh, context="context", stripe=128) if name == "context" else None
    place = NamedSharding(mesh, PartitionSpec(None, "context" if sharding else None))
    shape = functools.partial(jax.ShapeDtypeStruct, sharding=place)
    key_shape = (batch, keys, key_heads, head_dim) if gradients else (LAYERS, batch, key_heads, keys, head_dim)
    q, k = shape((batch, queries, heads, head_dim), dtype), shape(key_shape, dtype)
    edge = shape((batch, queries), jnp.int32)
    function = jax.jit(functools.partial(attention, sharding=sharding, gradients=gradients))
    lowered = function.lower(q, k, k, KeySpans(edge, edge))
    memory = lowered.compile().memory_analysis()
    return {
        "case": name,
        "kernels": lowered.as_text().count("tpu_custom_call"),
        "temp_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "devices": len(devices),
    }


if __name__ == "__main__":
    topology = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1])
    for case in sys.argv[2:]:
        print(json.dumps(compile_case(case, topology.devices)), flush=True)
