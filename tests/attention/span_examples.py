"""Spans and arrays that kernels are tested with, and the comparison with the dense attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from swjax.streaming import KeySpans


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


SPANS = (
    random_spans,
    mostly_empty_spans,
    packed_spans,
    window_spans,
    answer_before_video_spans,
    whole_spans,
)


@functools.partial(jax.jit, static_argnames="attention")
def values_and_gradients(q, k, v, spans, dout, *, attention):
    out, pull_back = jax.vjp(lambda *qkv: attention(*qkv, spans), q, k, v)
    return out, *pull_back(dout)


def assert_close(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, atol=tolerance * max(1.0, np.abs(other).max()))
