"""Attention with all scores at once, whole and in blocks, against the obvious one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_chunked import arrays, assert_close, mostly_empty_spans, random_spans, spans_of, values_and_gradients

from swjax.attention import span_attention


def frames(rng, batch, length, _):
    """Frames of sixteen patches, some of them windows of eight, and a padded end."""
    size = np.where(rng.random((batch, 1)) < 0.5, 16, 8)
    start = np.arange(length) // size * size
    stop = np.where(np.arange(length) < length - 16, start + size, start)
    return spans_of(start, stop)


def one_crosses(rng, batch, length, _):
    start, stop = (np.asarray(x).copy() for x in frames(rng, batch, length, _))
    stop[-1, 5] = 33
    return spans_of(start, stop)


@pytest.mark.parametrize("make_spans", [frames, one_crosses, random_spans, mostly_empty_spans])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
def test_equals_the_obvious_one(make_spans, dtype):
    rng = np.random.default_rng(0)
    q, k, v, dout = arrays(rng, 3, 96, 96, 4, 2, 8, dtype=dtype)
    spans = make_spans(rng, 3, 96, 96)
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    expected = values_and_gradients(*wide, spans, dout.astype(jnp.float32), implementation="reference")
    found = values_and_gradients(q, k, v, spans, dout, implementation="dense")
    assert all(x.dtype == dtype for x in found)
    assert_close([x.astype(jnp.float32) for x in found], expected, 1e-5 if dtype == jnp.float32 else 2e-2)
    assert not np.asarray(found[0])[np.asarray(spans.start >= spans.stop)].any()


def test_fewer_keys_than_queries():
    rng = np.random.default_rng(1)
    q, k, v, dout = arrays(rng, 2, 64, 32, 4, 2, 8)
    spans = random_spans(rng, 2, 64, 32)
    expected = values_and_gradients(q, k, v, spans, dout, implementation="reference")
    assert_close(values_and_gradients(q, k, v, spans, dout, implementation="dense"), expected, 1e-5)


def test_large_scores_do_not_overflow():
    rng = np.random.default_rng(2)
    q, k, v, dout = arrays(rng, 1, 64, 64, 2, 2, 8)
    spans = frames(rng, 1, 64, 64)
    expected = values_and_gradients(q * 1e3, k, v, spans, dout, implementation="reference")
    assert_close(values_and_gradients(q * 1e3, k, v, spans, dout, implementation="dense"), expected, 1e-4)


@pytest.mark.parametrize("make_spans", [frames, one_crosses])
def test_what_is_cut_reads_nothing_of_other_blocks(make_spans):
    """A key that is no number reaches all queries of a row that is not cut, and those of its own block alone of one."""
    rng = np.random.default_rng(3)
    q, k, v, _ = arrays(rng, 2, 96, 96, 2, 1, 8)
    attend = jax.jit(functools.partial(span_attention, implementation="dense"))
    out = np.asarray(attend(q, k, v.at[0, 0].set(jnp.nan), make_spans(rng, 2, 96, 96)))
    is_cut = make_spans is frames
    assert np.isnan(out[0, :32]).all()
    assert np.isfinite(out[0, 32:]).all() == is_cut
    assert np.isfinite(out[1]).all()
