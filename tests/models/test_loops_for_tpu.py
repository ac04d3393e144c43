"""Loops over layers as the compiler of v6e schedules them: nothing that is kept for the backward pass is copied."""

import sys

import pytest
from for_tpu import found_by

COMPILE = """
import json, re
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from jax.ad_checkpoint import checkpoint_name
from swjax.attention import span_attention
from swjax.compiler import HEADS_OUTERMOST, TRAINING_OPTIONS, in_order
from swjax.models.layers import gated, rms_norm, scan_layers
from swjax.models.remat import PROJECTION, WIDE_PROJECTION
from swjax.streaming import KeySpans

device = topologies.get_topology_desc(platform="tpu", topology_name="v6e:2x2").devices[0]
LAYERS, SLOTS, WIDTH, WIDE, HEADS, KEY_HEADS, HEAD = 2, 2048, 1024, 4096, 8, 2, 128

def shape(*dims, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(dims, dtype, sharding=SingleDeviceSharding(device))

def copies(step, weights, *more):
    def loss(weights, x, *more):
        out = scan_layers(lambda x, layer: step(x, layer, *more), x, weights, remat="minimal")
        return jnp.square(out.astype(jnp.float32)).sum()
    weights = [shape(LAYERS, *dims) for dims in weights]
    lowered = jax.jit(jax.grad(loss), compiler_options=dict(TRAINING_OPTIONS["tpu"])).lower(
        weights, shape(1, SLOTS, WIDTH), *more
    )
    text = lowered.compile().as_text()
    found = re.findall(r"= (\\w+\\[[\\d,]+\\])\\S* copy\\(", text)
    sizes = [(one, {int(size) for size in one.partition("[")[2].strip("]").split(",")}) for one in found]
    # What is kept of the width of the model is turned round for the gradients of weights, and copied where it is read.
    return text.count("convolution("), [one for one, has in sizes if SLOTS in has and has & {WIDE, HEADS, KEY_HEADS}]

def mlp(x, weights):
    gate, up, down = weights
    normed = rms_norm(x, jnp.ones(WIDTH, x.dtype), 1e-6)
    return x + gated(*(checkpoint_name(normed @ one, WIDE_PROJECTION) for one in (gate, up))) @ down

def attention(x, weights, start, stop):
    *inner, outer = weights
    q, k, v = (checkpoint_name(in_order(jnp.tensordot(x, one, 1), HEADS_OUTERMOST), PROJECTION) for one in inner)
    out = jnp.tensordot(span_attention(q, k, v, KeySpans(start, stop)), outer, 2)
    return x + checkpoint_name(out, PROJECTION)

edge = shape(1, SLOTS, dtype=jnp.int32)
of_keys = (WIDTH, KEY_HEADS, HEAD)
found = {
    "mlp": copies(mlp, [(WIDTH, WIDE), (WIDTH, WIDE), (WIDE, WIDTH)]),
    "attention": copies(attention, [(WIDTH, HEADS, HEAD), of_keys, of_keys, (HEADS, HEAD, WIDTH)], edge, edge),
}
print("FOUND", json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="libtpu is for Linux")
def test_what_a_loop_keeps_for_its_backward_pass_lies_as_it_is_read():
    found = found_by(COMPILE)
    for products, copied in found.values():
        assert products >= 9
        assert copied == []
