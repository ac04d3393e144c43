"""The TPU kernels in interpret mode against the dense attention; `test_tpu_compile.py` compiles them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swjax.attention import AttentionSharding, span_attention
from swjax.attention.kernel import attend
from swjax.attention.reference import reference_span_attention
from swjax.attention.sharded import sharded_kernel
from swjax.attention.tpu import TPUBlocks, make_tpu_kernel
from swjax.attention.tpu_backward import _touching_blocks
from swjax.attention.tpu_blocks import make_plan, row_spans
from swjax.streaming import KeySpans

SMALL = make_tpu_kernel(TPUBlocks(rows=128, queries=128, keys=256, tile=128, backward_keys=256), interpret=True)


def spans_of(start, stop):
    return KeySpans(np.asarray(start, np.int32), np.asarray(stop, np.int32))


def random_spans(rng, batch, queries, keys):
    start = rng.integers(0, keys, (batch, queries))
    return spans_of(start, np.minimum(start + rng.integers(0, keys, (batch, queries)), keys))


def mostly_empty_spans(rng, batch, queries, keys):
    start, stop = random_spans(rng, batch, queries, keys)
    stop = np.where(rng.random((batch, queries)) < 0.8, start, stop)
    stop[0], start[0, ::2] = 0, keys - 1  # a whole row that sees nothing, some of it with stop < start
    return spans_of(start, stop)


def packed_spans(rng, batch, queries, keys):
    """Causal examples one after another."""
    ends = np.sort(rng.integers(1, keys, (batch, 3)), axis=1)
    slots = np.arange(queries) * keys // queries
    start = np.stack([np.where(slots >= row[0], row[np.searchsorted(row, slots, "right") - 1], 0) for row in ends])
    return spans_of(start, np.broadcast_to(slots + 1, start.shape))


def window_spans(rng, batch, queries, keys):
    window = int(rng.integers(5, 200))
    start = np.arange(queries) * keys // queries // window * window
    start = np.broadcast_to(start, (batch, queries))
    return spans_of(start, np.minimum(start + window, keys))


def answer_before_video_spans(rng, batch, queries, keys):
    """The first tenth of the queries is an answer in reverse order, which sees far to the right."""
    slots = np.broadcast_to(np.arange(queries) * keys // queries, (batch, queries))
    origin = keys // 10
    is_answer = slots < origin
    stop = np.where(is_answer, keys - slots * 5, slots + 1)
    return spans_of(np.where(is_answer, slots, origin), stop)


def whole_spans(rng, batch, queries, keys):
    return spans_of(np.zeros((batch, queries)), np.full((batch, queries), keys))


def arrays(rng, batch, queries, keys, heads, key_heads, head_dim, dtype=np.float32):
    shapes = (queries, heads), (keys, key_heads), (keys, key_heads), (queries, heads)
    return [jnp.asarray(rng.normal(size=(batch, length, n, head_dim)), dtype) for length, n in shapes]


@functools.partial(jax.jit, static_argnames="attention")
def values_and_gradients(q, k, v, spans, dout, *, attention):
    out, pull_back = jax.vjp(lambda *qkv: attention(*qkv, spans), q, k, v)
    return out, *pull_back(dout)


small = functools.partial(attend, SMALL)


def assert_close(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, atol=tolerance * max(1.0, np.abs(other).max()))


SIZES = [
    # batch, queries, keys, heads, key heads, head dim
    (2, 61, 700, 7, 1, 128),  # a group of 7, blocks that end inside of a query
    (1, 300, 650, 2, 2, 80),
    (2, 150, 512, 4, 2, 64),
    (2, 1, 600, 14, 2, 128),  # decode: all heads together
    (2, 8, 300, 28, 4, 32),
    (3, 8, 70, 9, 3, 16),
]
SPANS = [
    random_spans,
    mostly_empty_spans,
    packed_spans,
    window_spans,
    answer_before_video_spans,
    whole_spans,
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_dense_one(size):
    rng = np.random.default_rng(size[1])
    q, k, v, dout = arrays(rng, *size)
    for make_spans in SPANS:
        spans = make_spans(rng, *size[:3])
        found = values_and_gradients(q, k, v, spans, dout, attention=small)
        expected = values_and_gradients(q, k, v, spans, dout, attention=reference_span_attention)
        assert_close(found, expected, 1e-5)
        nothing_seen = np.asarray(spans.start >= spans.stop)
        assert not np.asarray(found[0])[nothing_seen].any()
        assert not np.asarray(found[1])[nothing_seen].any()


@pytest.mark.parametrize("make_spans", [random_spans, packed_spans])
def test_bfloat16(make_spans):
    rng = np.random.default_rng(1)
    size = (2, 90, 300, 7, 1, 128)
    q, k, v, dout = arrays(rng, *size, dtype=jnp.bfloat16)
    spans = make_spans(rng, *size[:3])
    found = values_and_gradients(q, k, v, spans, dout, attention=small)
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


def test_keys_out_of_reach_are_not_read():
    rng = np.random.default_rng(4)
    q, k, v, dout = arrays(rng, 2, 30, 1280, 4, 2, 16)
    spans = spans_of(np.full((2, 30), [[520], [0]]), np.full((2, 30), [[760], [100]]))
    expected = values_and_gradients(q, k, v, spans, dout, attention=small)
    for row, (start, stop) in enumerate([(512, 768), (0, 128)]):
        outside = np.ones(1280, bool)
        outside[start:stop] = False
        k, v = (x.at[row, outside].set(jnp.nan) for x in (k, v))
    found = values_and_gradients(q, k, v, spans, dout, attention=small)
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
    monkeypatch.setattr("swjax.attention.tpu_backward.LIST_BYTES", 64)
    kernel = make_tpu_kernel(TPUBlocks(rows=128, queries=128, keys=256, tile=128, backward_keys=128), interpret=True)
    rng = np.random.default_rng(6)
    size = (2, 300, 600, 2, 1, 16)
    q, k, v, dout = arrays(rng, *size)
    for make_spans in (answer_before_video_spans, window_spans):
        spans = make_spans(rng, *size[:3])
        found = values_and_gradients(q, k, v, spans, dout, attention=functools.partial(attend, kernel))
        expected = values_and_gradients(q, k, v, spans, dout, attention=reference_span_attention)
        assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("shared", [1, 2, 3])
def test_lists_of_touching_blocks(shared):
    rng = np.random.default_rng(7)
    q, k, _, _ = arrays(rng, 2, 700, 1000, 2, 1, 8)
    blocks = TPUBlocks(rows=128, queries=128, keys=256, tile=128, backward_keys=128)
    plan = make_plan(q, k, blocks, blocks.backward_keys)
    spans = answer_before_video_spans(rng, 2, 700, 1000)
    counts, touching = _touching_blocks(row_spans(spans, plan).reach, plan, shared)
    lists = -(-plan.num_key_blocks // shared)
    touching = np.asarray(touching).reshape(2 * lists, plan.num_row_blocks)
    start, stop = (np.repeat(edge, 2, axis=1) for edge in spans)
    for which in range(2 * lists):
        row, keys = which // lists, which % lists * shared * 128
        expected = [
            block
            for block in range(plan.num_row_blocks)
            if start[row, block * 128 : block * 128 + 128].min() < keys + shared * 128
            and stop[row, block * 128 : block * 128 + 128].max() > keys
        ]
        assert list(touching[which, : counts[which]]) == expected


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
