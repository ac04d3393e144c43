"""The cache against the whole forward pass, in any order of arrival that the spans allow."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swjax.models.qwen2_5_vl import KeyValueCache, Qwen2_5_VL, Qwen2_5_VLConfig
from swjax.streaming import KeySpans


@pytest.fixture(scope="module")
def model():
    return Qwen2_5_VL(Qwen2_5_VLConfig.preset("tiny"), rngs=nnx.Rngs(0))


def test_sources_and_targets_grow_from_the_origin_in_any_order(model):
    targets, sources, origin, slots = 5, 9, 7, 20
    rng = np.random.default_rng(0)
    # In slot order: targets reversed, then sources; target i (from 1) sees i targets and seen[i] sources.
    seen = np.array([2, 2, 5, 9, 9])
    token_ids = rng.integers(0, 500, (1, targets + sources)).astype(np.int32)
    position_ids = rng.integers(0, 20_000, (3, 1, targets + sources)).astype(np.int32)
    start = np.concatenate([np.arange(targets), np.full(sources, targets)])
    stop = np.concatenate([seen[::-1] + targets, targets + 1 + np.arange(sources)])
    spans = KeySpans(start[None].astype(np.int32), stop[None].astype(np.int32))
    expected = model.hidden(token_ids, position_ids, spans)

    cache = KeyValueCache.empty(model.config.text, batch=1, slots=slots)
    got = np.full(expected.shape, np.nan)
    shift = origin - targets
    source_slots = list(range(targets, targets + sources))
    chunks = [source_slots[:2], [4], [3], source_slots[2:5], [2], source_slots[5:], [1], [0]]
    for chunk in chunks:
        index = np.array(chunk)
        hidden, cache = model.extend(
            token_ids[:, index],
            position_ids[:, :, index],
            KeySpans(spans.start[:, index] + shift, spans.stop[:, index] + shift),
            cache=cache,
            slots=jnp.asarray(index[None] + shift),
        )
        got[:, index] = hidden
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_slots_beyond_the_cache_are_not_written(model):
    cache = KeyValueCache.empty(model.config.text, batch=1, slots=4)
    ids, positions = np.array([[7]], np.int32), np.zeros((3, 1, 1), np.int32)
    spans = KeySpans(np.array([[0]], np.int32), np.array([[1]], np.int32))
    _, after = model.extend(ids, positions, spans, cache=cache, slots=jnp.array([[4]]))
    assert not after.keys.any()
    _, after = model.extend(ids, positions, spans, cache=cache, slots=jnp.array([[3]]))
    assert after.keys[:, 0, :, 3].any()
    assert not after.keys[:, 0, :, :3].any()
