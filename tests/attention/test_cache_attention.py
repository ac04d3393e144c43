"""Attention to a layer of a cache, by every implementation, against the dense one on that layer alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from span_examples import SPANS, arrays, assert_close, random_spans

from swjax.attention import AttentionSharding, SpanAttention, cache_attention
from swjax.attention.chunked import chunked_kernel
from swjax.attention.gpu import GPUBlocks, make_gpu_kernel
from swjax.attention.reference import reference_span_attention
from swjax.attention.tpu import TPUBlocks, make_tpu_kernel

LAYERS, LAYER = 3, 1
CACHES = {
    "auto": cache_attention,
    "reference": functools.partial(cache_attention, like=SpanAttention("reference")),
    "chunked": chunked_kernel.cache,
    "tpu": make_tpu_kernel(
        TPUBlocks(rows=128, queries=128, keys=256, tile=128, backward_keys=256), interpret=True
    ).cache,
    "tpu in pieces": make_tpu_kernel(TPUBlocks(rows=128, queries=128, keys=512, tile=128), interpret=True).cache,
    "gpu": make_gpu_kernel(GPUBlocks(queries=64, keys=32, programs=8), interpret=True).cache,
}
SIZES = [
    # batch, queries, slots, heads, key heads, head dim
    (2, 1, 700, 14, 2, 128),
    (1, 1, 5000, 4, 1, 32),  # longer than one block of the longest kind
    (3, 8, 300, 6, 2, 32),
    (1, 300, 650, 4, 2, 64),
    (2, 20, 9, 6, 3, 16),
]


def cache_of(layer):
    """A cache, heads first, with random numbers in its other layers."""
    layer = np.asarray(layer).swapaxes(1, 2)
    cache = np.random.default_rng(9).normal(size=(LAYERS, *layer.shape)).astype(layer.dtype)
    cache[LAYER] = layer
    return jnp.asarray(cache)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", CACHES)
def test_equals_the_dense_one(name, size):
    rng = np.random.default_rng(size[1])
    q, k, v, _ = arrays(rng, *size)
    attend = jax.jit(CACHES[name])
    for make_spans in SPANS:
        spans = make_spans(rng, *size[:3])
        found = attend(q, cache_of(k), cache_of(v), jnp.int32(LAYER), spans)
        assert_close([found], [reference_span_attention(q, k, v, spans)], 1e-5)
        assert not np.asarray(found)[np.asarray(spans.start >= spans.stop)].any()


@pytest.mark.parametrize("name", ["tpu", "tpu in pieces", "gpu", "chunked"])
def test_bfloat16(name):
    rng = np.random.default_rng(1)
    size = (2, 3, 300, 14, 2, 128)
    q, k, v, _ = arrays(rng, *size, dtype=jnp.bfloat16)
    spans = random_spans(rng, *size[:3])
    found = CACHES[name](q, cache_of(k), cache_of(v), jnp.int32(LAYER), spans)
    exact = reference_span_attention(*(x.astype(jnp.float32) for x in (q, k, v)), spans)
    assert_close([found], [exact.astype(jnp.bfloat16)], 2e-2)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_to_one_kernel_that_is_given_the_whole_cache(platform):
    rng = np.random.default_rng(0)
    q, k, v, _ = arrays(rng, 2, 5, 4096, 14, 2, 128, dtype=jnp.bfloat16)
    spans = random_spans(rng, 2, 5, 4096)
    operands = q, cache_of(k), cache_of(v), jnp.int32(LAYER), spans
    exported = jax.export.export(jax.jit(cache_attention), platforms=[platform], disabled_checks=DISABLED)(*operands)
    text = exported.mlir_module()
    kernels = [line for line in text.splitlines() if "custom_call" in line and "span_attention_forward" in line]
    assert len(kernels) == 1
    assert kernels[0].count(f"tensor<{LAYERS}x2x2x4096x128xbf16>") == 2


DISABLED = [jax.export.DisabledSafetyCheck.custom_call(name) for name in ("tpu_custom_call", "__gpu$xla.gpu.triton")]


def test_wrong_use_is_refused():
    rng = np.random.default_rng(0)
    q, k, v, _ = arrays(rng, 1, 1, 8, 4, 2, 16)
    spans = random_spans(rng, 1, 1, 8)
    with pytest.raises(ValueError, match="4 query heads cannot share 3 key heads"):
        cache_attention(q, cache_of(np.ones((1, 8, 3, 16))), cache_of(np.ones((1, 8, 3, 16))), 0, spans)
    with pytest.raises(ValueError, match="unknown attention implementation 'flash'"):
        cache_attention(q, cache_of(k), cache_of(v), 0, spans, like=SpanAttention("flash"))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("heads",))
    divided = SpanAttention(sharding=AttentionSharding(mesh, context="heads"))
    with pytest.raises(ValueError, match="not divided along its slots"):
        cache_attention(q, cache_of(k), cache_of(v), 0, spans, like=divided)
