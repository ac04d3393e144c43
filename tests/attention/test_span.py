"""Span attention against a loop over queries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swjax.attention import span_attention
from swjax.streaming import KeySpans


def looped(q, k, v, spans):
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        keys = slice(spans.start[b, t], spans.stop[b, t])
        head = n // (q.shape[2] // k.shape[2])
        if keys.start < keys.stop:
            scores = k[b, keys, head] @ q[b, t, n] / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max())
            out[b, t, n] = weights @ v[b, keys, head] / weights.sum()
    return out


@pytest.fixture
def example():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, length, heads, 8)) for length, heads in ((11, 6), (17, 2), (17, 2)))
    start = rng.integers(0, 17, (2, 11))
    stop = np.minimum(start + rng.integers(0, 9, (2, 11)), 17)
    stop[0, 3] = start[0, 3]
    return q, k, v, KeySpans(start, stop)


def test_values(example):
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            span_attention(*map(jnp.asarray, example[:3]), example[3]), looped(*example), atol=1e-6
        )


def test_empty_spans_give_zeros_and_finite_gradients(example):
    q, k, v, spans = example
    q, k, v = (jnp.asarray(x, jnp.float32) for x in (q, k, v))
    out = span_attention(q, k, v, spans)
    assert not np.asarray(out[0, 3]).any()
    gradients = jax.grad(lambda *qkv: span_attention(*qkv, spans).sum(), argnums=(0, 1, 2))(q, k, v)
    assert all(np.isfinite(g).all() for g in gradients)
    assert not np.asarray(gradients[0][0, 3]).any()


def test_wrong_arguments(example):
    q, k, v, spans = example
    with pytest.raises(ValueError, match="unknown attention implementation 'flash'"):
        span_attention(q, k, v, spans, implementation="flash")
    with pytest.raises(ValueError, match="5 query heads cannot share 2 key heads"):
        span_attention(q[:, :, :5], k, v, spans)
