"""The TPU kernels in interpret mode against the dense attention; `test_tpu_compile.py` compiles them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from span_examples import (
    SPANS,
    answer_before_video_spans,
    arrays,
    assert_close,
    mostly_empty_spans,
    packed_spans,
    random_spans,
    spans_of,
    values_and_gradients,
    whole_spans,
    window_spans,
)

from swjax.attention import AttentionSharding, span_attention
from swjax.attention.kernel import attend
from swjax.attention.reference import reference_span_attention
from swjax.attention.sharded import sharded_kernel
from swjax.attention.tpu import TPUBlocks, make_tpu_kernel

BLOCKS = TPUBlocks(forward_rows=256, chunk=32, rows=128, queries=128, keys=256, tile=128, backward_keys=256)
SMALL = make_tpu_kernel(BLOCKS, interpret=True)
small = functools.partial(attend, SMALL)
small_without_memory = functools.partial(
    attend, make_tpu_kernel(dataclasses.replace(BLOCKS, key_bytes=0), interpret=True)
)
each_backward_pass = pytest.mark.parametrize(
    "attention", [small, small_without_memory], ids=["one kernel backward", "two kernels backward"]
)


SIZES = [
    # batch, queries, keys, heads, key heads, head dim
    (2, 61, 700, 7, 1, 128),  # a group of 7, blocks that end inside of a query
    (1, 300, 650, 2, 2, 80),
    (2, 150, 512, 4, 2, 64),
    (2, 1, 600, 14, 2, 128),  # decode
    (2, 8, 300, 28, 4, 32),
    (3, 8, 70, 9, 3, 16),
]


@each_backward_pass
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_dense_one(size, attention):
    rng = np.random.default_rng(size[1])
    q, k, v, dout = arrays(rng, *size)
    for make_spans in SPANS:
        spans = make_spans(rng, *size[:3])
        found = values_and_gradients(q, k, v, spans, dout, attention=attention)
        expected = values_and_gradients(q, k, v, spans, dout, attention=reference_span_attention)
        assert_close(found, expected, 1e-5)
        nothing_seen = np.asarray(spans.start >= spans.stop)
        assert not np.asarray(found[0])[nothing_seen].any()
        assert not np.asarray(found[1])[nothing_seen].any()


@each_backward_pass
@pytest.mark.parametrize("make_spans", [random_spans, packed_spans])
def test_bfloat16(make_spans, attention):
    rng = np.random.default_rng(1)
    size = (2, 90, 300, 7, 1, 128)
    q, k, v, dout = arrays(rng, *size, dtype=jnp.bfloat16)
    spans = make_spans(rng, *size[:3])
    found = values_and_gradients(q, k, v, spans, dout, attention=attention)
    exact = values_and_gradients(
        *(x.astype(jnp.float32) for x in (q, k, v)),
        spans,
        dout.astype(jnp.float32),
        attention=reference_span_attention,
    )
    assert_close(found, [x.astype(jnp.bfloat16) for x in exact], 2e-2)


def test_log_sum_exp():
    rng = np.random.default_rng(2)
    q, k, v, _ = arrays(rng, 2, 40, 300, 4, 2, 64)
    spans = mostly_empty_spans(rng, 2, 40, 300)
    _, lse = SMALL.forward(q, k, v, spans)
    scores = np.einsum("btnh,bsnh->bnts", q, np.repeat(k, 2, axis=2)) / 8
    seen = spans.to_mask(300)[:, None]
    with np.errstate(divide="ignore"):
        expected = np.log((np.exp(scores) * seen).sum(axis=-1))
    np.testing.assert_allclose(lse, np.where(np.isfinite(expected), expected, 0), atol=1e-5)


def test_default_blocks():
    rng = np.random.default_rng(3)
    size = (1, 1100, 2600, 1, 1, 64)
    q, k, v, dout = arrays(rng, *size)
    spans = answer_before_video_spans(rng, *size[:3])
    attention = functools.partial(attend, make_tpu_kernel(TPUBlocks(), interpret=True))
    found = values_and_gradients(q, k, v, spans, dout, attention=attention)
    expected = values_and_gradients(q, k, v, spans, dout, attention=reference_span_attention)
    assert_close(found, expected, 1e-5)


@each_backward_pass
def test_keys_out_of_reach_are_not_read(attention):
    rng = np.random.default_rng(4)
    q, k, v, dout = arrays(rng, 2, 30, 1280, 4, 2, 16)
    spans = spans_of(np.full((2, 30), [[520], [0]]), np.full((2, 30), [[760], [100]]))
    expected = values_and_gradients(q, k, v, spans, dout, attention=attention)
    for row, (start, stop) in enumerate([(512, 768), (0, 128)]):
        outside = np.ones(1280, bool)
        outside[start:stop] = False
        k, v = (x.at[row, outside].set(jnp.nan) for x in (k, v))
    found = values_and_gradients(q, k, v, spans, dout, attention=attention)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_batches_compile_once():
    values_and_gradients.clear_cache()
    rng = np.random.default_rng(5)
    for make_spans in SPANS:
        q, k, v, dout = arrays(rng, 2, 50, 300, 2, 1, 8)
        values_and_gradients(q, k, v, make_spans(rng, 2, 50, 300), dout, attention=small)
    assert values_and_gradients._cache_size() == 1


def test_short_memory_for_lists(monkeypatch):
    """Neighbouring blocks of keys share a list where scalar memory cannot hold one for each."""
    monkeypatch.setattr("swjax.attention.tpu_long_backward.LIST_BYTES", 64)
    blocks = TPUBlocks(rows=128, queries=128, keys=256, tile=128, backward_keys=128, key_bytes=0)
    kernel = make_tpu_kernel(blocks, interpret=True)
    rng = np.random.default_rng(6)
    size = (2, 300, 600, 2, 1, 16)
    q, k, v, dout = arrays(rng, *size)
    for make_spans in (answer_before_video_spans, window_spans):
        spans = make_spans(rng, *size[:3])
        found = values_and_gradients(q, k, v, spans, dout, attention=functools.partial(attend, kernel))
        expected = values_and_gradients(q, k, v, spans, dout, attention=reference_span_attention)
        assert_close(found, expected, 1e-5)


def test_inside_scan_checkpoint_and_shard_map():
    rng = np.random.default_rng(8)
    q, k, v, _ = arrays(rng, 2, 64, 64, 4, 2, 16)
    spans = packed_spans(rng, 2, 64, 64)
    mesh = jax.make_mesh((2, 2, 2), ("data", "tensor", "context"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    sharding = AttentionSharding(mesh, batch=("data",), heads="tensor", context="context")

    def loss(attention, q, k, v):
        layer = jax.checkpoint(lambda x, _: (x + attention(x, k, v, spans), None))
        return (jax.lax.scan(layer, q, None, length=2)[0] ** 2).sum()

    divided = functools.partial(attend, sharded_kernel(SMALL, sharding))
    found, expected = (
        jax.jit(jax.grad(functools.partial(loss, attention), argnums=(0, 1, 2)))(q, k, v)
        for attention in (divided, reference_span_attention)
    )
    assert_close(found, expected, 1e-5)


def test_by_name_it_refuses_a_cpu():
    q, k, v, _ = arrays(np.random.default_rng(9), 1, 4, 4, 2, 1, 8)
    with pytest.raises(ValueError, match="'tpu' runs on tpu, and this is compiled for cpu"):
        span_attention(q, k, v, whole_spans(None, 1, 4, 4), implementation="tpu")
