"""An implementation of attention that somebody else has added: by name, on a cache, and in a model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from span_examples import arrays, random_spans

from swjax.attention import IMPLEMENTATIONS, KERNELS, Kernel, SpanAttention, cache_attention, span_attention
from swjax.attention.reference import reference_span_attention
from swjax.streaming import KeySpans


def doubled(q, k, v, spans):
    """Twice the right output, so that it can be told from the others."""
    return 2 * reference_span_attention(q, k, v, spans), None


def doubled_cache(q, keys, values, layer, spans):
    return doubled(q, keys[layer].swapaxes(1, 2), values[layer].swapaxes(1, 2), spans)[0]


@pytest.fixture(autouse=True)
def added(monkeypatch):
    monkeypatch.setitem(KERNELS, "toy", Kernel(doubled, None, doubled_cache))


def test_it_is_known_by_name():
    assert list(IMPLEMENTATIONS)[-1] == "toy"
    with pytest.raises(ValueError, match=r"choose one of auto, .*, toy$"):
        span_attention(*arrays(np.random.default_rng(0), 1, 4, 4, 2, 1, 8)[:3], None, implementation="no")


def test_attention_its_gradient_and_its_cache_form():
    rng = np.random.default_rng(0)
    q, k, v, _ = arrays(rng, 2, 5, 9, 4, 2, 8)
    spans = random_spans(rng, 2, 5, 9)
    run = functools.partial(span_attention, implementation="toy")
    expected = 2 * reference_span_attention(q, k, v, spans)
    np.testing.assert_allclose(run(q, k, v, spans), expected, rtol=1e-6)
    found, other = (jax.grad(lambda q, f=f: f(q, k, v, spans).sum())(q) for f in (run, reference_span_attention))
    np.testing.assert_allclose(found, 2 * other, rtol=1e-5, atol=1e-6)
    keys, values = (jnp.stack([jnp.zeros_like(x), x]).swapaxes(2, 3) for x in (k, v))
    in_cache = cache_attention(q, keys, values, jnp.int32(1), spans, like=SpanAttention("toy"))
    np.testing.assert_allclose(in_cache, expected, rtol=1e-6)


def test_a_model_attends_with_it(random_model):
    length = 6
    ids = np.arange(10, 10 + length, dtype=np.int32)[None]
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (3, 1, length))
    spans = KeySpans(np.zeros((1, length), np.int32), np.arange(1, length + 1, dtype=np.int32)[None])
    before = random_model.decoder.layers.attention
    logits = {}
    try:
        for name in ("reference", "toy"):
            random_model.decoder.layers.attention = SpanAttention(name)
            logits[name] = np.asarray(random_model(ids, positions, spans))
    finally:
        random_model.decoder.layers.attention = before
    assert np.isfinite(logits["toy"]).all()
    assert np.abs(logits["toy"] - logits["reference"]).max() > 1e-3
