"""Blockwise attention against the dense one, and its memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swjax.attention import span_attention
from swjax.attention.chunked import KEY_BLOCK, QUERY_BLOCK
from swjax.streaming import KeySpans


def random_spans(rng, batch, queries, keys):
    start = rng.integers(0, keys, (batch, queries))
    stop = np.minimum(start + rng.integers(0, keys, (batch, queries)), keys)
    return spans_of(start, stop)


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
    window = int(rng.integers(5, 40))
    start = np.arange(queries) * keys // queries // window * window
    start = np.broadcast_to(start, (batch, queries))
    return spans_of(start, np.minimum(start + window, keys))


def spans_of(start, stop):
    return KeySpans(np.asarray(start, np.int32), np.asarray(stop, np.int32))


def arrays(rng, batch, queries, keys, heads, key_heads, head_dim, dtype=np.float32):
    shapes = (queries, heads), (keys, key_heads), (keys, key_heads), (queries, heads)
    return [jnp.asarray(rng.normal(size=(batch, length, n, head_dim)), dtype) for length, n in shapes]


@functools.partial(jax.jit, static_argnames="implementation")
def values_and_gradients(q, k, v, spans, dout, *, implementation):
    attention = functools.partial(span_attention, spans=spans, implementation=implementation)
    out, pull_back = jax.vjp(attention, q, k, v)
    return out, *pull_back(dout)


def assert_close(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, atol=tolerance * max(1.0, np.abs(other).max()))


SIZES = [
    # batch, queries, keys, heads, key heads, head dim
    (2, 2 * QUERY_BLOCK + 37, 2 * KEY_BLOCK + 91, 4, 2, 16),
    (1, 3 * QUERY_BLOCK, 2 * KEY_BLOCK, 7, 1, 8),
    (3, 19, KEY_BLOCK + 1, 2, 2, 20),
    (2, QUERY_BLOCK + 1, 5, 6, 3, 8),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("make_spans", [random_spans, mostly_empty_spans, packed_spans, window_spans])
def test_equals_the_dense_one(make_spans, size):
    rng = np.random.default_rng(size[1])
    q, k, v, dout = arrays(rng, *size)
    spans = make_spans(rng, *size[:3])
    found = values_and_gradients(q, k, v, spans, dout, implementation="chunked")
    expected = values_and_gradients(q, k, v, spans, dout, implementation="reference")
    assert_close(found, expected, 1e-5)
    nothing_seen = np.asarray(spans.start >= spans.stop)
    assert not np.asarray(found[0])[nothing_seen].any()
    assert not np.asarray(found[1])[nothing_seen].any()


@pytest.mark.parametrize("make_spans", [random_spans, mostly_empty_spans])
def test_equals_the_dense_one_in_bfloat16(make_spans):
    rng = np.random.default_rng(1)
    size = SIZES[0]
    q, k, v, dout = arrays(rng, *size, dtype=jnp.bfloat16)
    spans = make_spans(rng, *size[:3])
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    expected = values_and_gradients(*wide, spans, dout.astype(jnp.float32), implementation="reference")
    found = values_and_gradients(q, k, v, spans, dout, implementation="chunked")
    assert all(x.dtype == jnp.bfloat16 for x in found)
    assert_close([x.astype(jnp.float32) for x in found], expected, 2e-2)


def test_large_scores_do_not_overflow():
    rng = np.random.default_rng(2)
    q, k, v, dout = arrays(rng, 1, 40, 600, 2, 2, 8)
    spans = random_spans(rng, 1, 40, 600)
    found = values_and_gradients(q * 1e3, k, v, spans, dout, implementation="chunked")
    expected = values_and_gradients(q * 1e3, k, v, spans, dout, implementation="reference")
    assert_close(found, expected, 1e-4)


def test_one_query_against_a_long_cache():
    rng = np.random.default_rng(3)
    q, k, v, dout = arrays(rng, 3, 1, 5000, 4, 2, 16)
    spans = spans_of([[100], [4000], [0]], [[1700], [5000], [0]])
    found = values_and_gradients(q, k, v, spans, dout, implementation="chunked")
    assert_close(found, values_and_gradients(q, k, v, spans, dout, implementation="reference"), 1e-5)
    # Keys outside of the spans are not even read.
    unread = jnp.full_like(k, jnp.nan)
    for row, (start, stop) in enumerate([(100, 1700), (4000, 5000)]):
        size = -(-(stop - start) // KEY_BLOCK) * KEY_BLOCK
        first = min(start, 5000 - size)
        unread = unread.at[row, first : first + size].set(k[row, first : first + size])
    out = values_and_gradients(q, unread, v, spans, dout, implementation="chunked")[0]
    np.testing.assert_allclose(out, found[0], atol=1e-6)


def test_batches_compile_once():
    values_and_gradients.clear_cache()
    rng = np.random.default_rng(4)
    for make_spans in (random_spans, packed_spans, window_spans, mostly_empty_spans):
        q, k, v, dout = arrays(rng, 2, 50, 60, 2, 1, 8)
        values_and_gradients(q, k, v, make_spans(rng, 2, 50, 60), dout, implementation="chunked")
    assert values_and_gradients._cache_size() == 1


def scratch_bytes(length, heads=4, key_heads=2, head_dim=32):
    """What the compiled forward and backward pass needs beside its arguments and results."""
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    q, k = shape((1, length, heads, head_dim)), shape((1, length, key_heads, head_dim))
    edge = jax.ShapeDtypeStruct((1, length), jnp.int32)
    lowered = values_and_gradients.lower(q, k, k, KeySpans(edge, edge), q, implementation="chunked")
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_memory_is_linear_in_length():
    short, long = scratch_bytes(4096), scratch_bytes(16384)
    assert long < 4.1 * short
    assert long < 16384 * 16384  # not even one byte a score
