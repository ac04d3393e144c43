"""The Mosaic GPU kernels in interpret mode against the dense attention, and lowered for CUDA.

`test_gpu_kernel.py` runs them on a GPU where there is one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from span_examples import (
    answer_before_video_spans,
    arrays,
    assert_close,
    mostly_empty_spans,
    packed_spans,
    random_spans,
    spans_of,
    values_and_gradients,
)

from swjax.attention import SpanAttention, cache_attention, span_attention
from swjax.attention.mosaic import MosaicBlocks, make_mosaic_kernel
from swjax.attention.mosaic_backward import touching_parts
from swjax.attention.mosaic_blocks import ROWS, prepare
from swjax.attention.reference import reference_span_attention
from swjax.streaming import KeySpans

SMALL = MosaicBlocks(keys=64, backward_keys=64)


def interpreted(test):
    """A test that runs a kernel, as the interpreter does: slowly, and only from JAX 0.11 on."""
    missing = not hasattr(plgpu, "InterpretGPUParams")
    return pytest.mark.slow(pytest.mark.skipif(missing, reason="needs the interpreter of JAX 0.11")(test))


def run(blocks, q, k, v, spans, dout):
    """Output, log-sum-exp and gradients. The interpreter cannot run passes compiled together."""
    kernel = make_mosaic_kernel(blocks, interpret=plgpu.InterpretGPUParams())
    out, lse = kernel.forward(q, k, v, spans)
    return out, lse, *kernel.backward(q, k, v, spans, out, lse, dout)


def expected_of(q, k, v, spans, dout):
    exact = (x.astype(jnp.float32) for x in (q, k, v))
    found = values_and_gradients(*exact, spans, dout.astype(jnp.float32), attention=reference_span_attention)
    return [x.astype(q.dtype) for x in found]


@interpreted
@pytest.mark.parametrize(
    ("size", "dtype", "make_spans"),
    [
        # batch, queries, keys, heads, key heads, head dim
        ((1, 70, 200, 2, 1, 64), jnp.bfloat16, packed_spans),
        ((1, 140, 130, 1, 1, 40), jnp.float16, answer_before_video_spans),
        ((2, 66, 150, 1, 1, 16), jnp.bfloat16, mostly_empty_spans),
        ((1, 3, 600, 4, 2, 32), jnp.bfloat16, random_spans),  # heads packed, keys divided
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_equals_the_dense_one(size, dtype, make_spans):
    rng = np.random.default_rng(size[1])
    q, k, v, dout = arrays(rng, *size, dtype=dtype)
    spans = make_spans(rng, *size[:3])
    out, lse, *gradients = run(SMALL, q, k, v, spans, dout)
    assert_close((out, *gradients), expected_of(q, k, v, spans, dout), 2e-2)

    nothing_seen = np.asarray(spans.start >= spans.stop)
    assert not np.asarray(out)[nothing_seen].any()
    assert not np.asarray(gradients[0])[nothing_seen].any()
    k = np.repeat(np.asarray(k, np.float32), size[3] // size[4], axis=2)
    scores = np.einsum("btnh,bsnh->bnts", np.asarray(q, np.float32), k) * size[5] ** -0.5
    with np.errstate(divide="ignore"):
        exact = np.log((np.exp(scores) * spans.to_mask(size[2])[:, None]).sum(axis=-1))
    assert lse.dtype == jnp.float32
    np.testing.assert_allclose(lse, np.where(np.isfinite(exact), exact, 0), atol=1e-4)


@interpreted
def test_keys_out_of_reach_are_not_read():
    rng = np.random.default_rng(4)
    q, k, v, dout = arrays(rng, 1, 66, 384, 1, 1, 16, dtype=jnp.bfloat16)
    spans = spans_of(np.full((1, 66), 150), np.full((1, 66), 250))
    expected = run(SMALL, q, k, v, spans, dout)
    outside = (np.arange(384) < 128) | (np.arange(384) >= 256)
    k, v = (x.at[:, outside].set(jnp.nan) for x in (k, v))
    for one, other in zip(run(SMALL, q, k, v, spans, dout), expected, strict=True):
        np.testing.assert_array_equal(one, other)


@interpreted
def test_cache():
    rng = np.random.default_rng(5)
    q, _, _, _ = arrays(rng, 1, 1, 1, 4, 2, 64, dtype=jnp.bfloat16)
    keys, values = (jnp.asarray(rng.normal(size=(2, 1, 2, 600, 64)), jnp.bfloat16) for _ in range(2))
    spans = spans_of([[70]], [[555]])
    attention = make_mosaic_kernel(SMALL, interpret=plgpu.InterpretGPUParams()).cache
    found = attention(q, keys, values, jnp.int32(1), spans)
    exact = (x.astype(jnp.float32) for x in (q, keys[1].swapaxes(1, 2), values[1].swapaxes(1, 2)))
    assert_close([found], [reference_span_attention(*exact, spans).astype(jnp.bfloat16)], 2e-2)


@pytest.mark.parametrize("queries", [1, 300])
def test_blocks_that_tiles_reach_and_see_whole(queries):
    keys, step = 500, 64
    rng = np.random.default_rng(6)
    q, k, v, _ = arrays(rng, 2, queries, keys, 1, 1, 64, dtype=jnp.bfloat16)
    for make_spans in (random_spans, mostly_empty_spans, packed_spans):
        spans = make_spans(rng, 2, queries, keys)
        plan, operands = prepare(q, k, v, spans, keys=step, stages=2, interpret=False)
        seen = np.zeros((2, plan.length, -(-keys // step) * step), bool)
        seen[:, :queries, :keys] = spans.to_mask(keys)
        seen = seen.reshape(2, plan.num_tiles, plan.warpgroups, ROWS, -1, step)
        index = np.arange(seen.shape[-2])
        touched = seen.any(axis=(2, 3, 5))
        low, high = np.asarray(operands.reach)[..., None, 0], np.asarray(operands.reach)[..., None, 1]
        reached = (index >= low) & (index < high)
        assert not (touched & ~reached).any()
        is_any = touched.any(axis=-1)
        np.testing.assert_array_equal(high[..., 0] > low[..., 0], is_any)
        # No wider than from the first block that is touched to the last.
        np.testing.assert_array_equal(low[is_any][:, 0], touched.argmax(axis=-1)[is_any])
        np.testing.assert_array_equal(high[is_any][:, 0], len(index) - touched[..., ::-1].argmax(axis=-1)[is_any])
        whole = np.asarray(operands.whole).reshape(2, plan.num_tiles, plan.warpgroups, 1, 2)
        is_whole = (index >= whole[..., 0]) & (index < whole[..., 1])
        np.testing.assert_array_equal(is_whole, seen.all(axis=(3, 5)))


def test_parts_that_touch_tiles_of_keys():
    keys, tile = 500, 128
    rng = np.random.default_rng(7)
    q, k, v, _ = arrays(rng, 2, 300, keys, 1, 1, 64, dtype=jnp.bfloat16)
    for make_spans in (random_spans, mostly_empty_spans, packed_spans):
        spans = make_spans(rng, 2, 300, keys)
        plan, operands = prepare(q, k, v, spans, keys=64, stages=2, interpret=False)
        counts, touching = touching_parts(operands.edges, tile, plan.num_keys)
        seen = np.zeros((2, plan.length, 4 * tile), bool)
        seen[:, :300, :keys] = spans.to_mask(keys)
        seen = seen.reshape(2, -1, ROWS, 4, tile)
        for row, key_tile in np.ndindex(2, 4):
            listed = np.asarray(touching[row, key_tile, : counts[row, key_tile]])
            assert set(np.flatnonzero(seen[row, :, :, key_tile].any(axis=(1, 2)))) <= set(listed // 2)
            assert len(set(listed // 2)) == len(listed)
            np.testing.assert_array_equal(listed % 2, seen[row, listed // 2, :, key_tile].all(axis=(1, 2)))


def shapes_of(batch, queries, keys, heads, key_heads, head_dim, dtype):
    q = jax.ShapeDtypeStruct((batch, queries, heads, head_dim), dtype)
    k = jax.ShapeDtypeStruct((batch, keys, key_heads, head_dim), dtype)
    edge = jax.ShapeDtypeStruct((batch, queries), jnp.int32)
    return q, k, k, KeySpans(edge, edge)


def loss(q, k, v, spans):
    return span_attention(q, k, v, spans, implementation="mosaic").astype(jnp.float32).sum()


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        ((1, 32768, 32768, 28, 4, 128), jnp.bfloat16),
        ((2, 3001, 4001, 4, 2, 80), jnp.float16),
        ((2, 8, 32768, 28, 4, 128), jnp.bfloat16),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_lowers_for_cuda(size, dtype):
    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*shapes_of(*size, dtype))
    assert traced.lower(lowering_platforms=("cuda",)).as_text().count("@mosaic_gpu") == 3


def test_cache_lowers_for_cuda():
    q, _, _, spans = shapes_of(2, 1, 1, 28, 4, 128, jnp.bfloat16)
    keys = jax.ShapeDtypeStruct((3, 2, 4, 4096, 128), jnp.bfloat16)
    layer = jax.ShapeDtypeStruct((), jnp.int32)
    attention = functools.partial(cache_attention, like=SpanAttention("mosaic"))
    traced = jax.jit(attention).trace(q, keys, keys, layer, spans)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@mosaic_gpu") == 1
    assert "3x2x4x4096x128xbf16" in text


@pytest.mark.parametrize(
    ("head_dim", "dtype", "found"),
    [(64, jnp.float32, "float32 with 64"), (192, jnp.bfloat16, "bfloat16 with 192")],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_refuses_what_does_not_fit(head_dim, dtype, found):
    """In lowering, not in tracing, so that a program for several platforms can be traced."""
    traced = jax.jit(jax.grad(loss)).trace(*shapes_of(1, 128, 128, 2, 1, head_dim, dtype))
    with pytest.raises(ValueError, match=f"'mosaic' takes bfloat16 or float16 .* this is {found}"):
        traced.lower(lowering_platforms=("cuda",))


def test_by_name_it_refuses_a_cpu():
    q, k, v, _ = arrays(np.random.default_rng(9), 1, 4, 4, 2, 1, 8, dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match="'mosaic' runs on cuda, and this is compiled for cpu"):
        span_attention(q, k, v, spans_of([[0] * 4], [[4] * 4]), implementation="mosaic")
