"""The cache against the whole forward pass, in any order of arrival that the spans allow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swjax.models.cache import runs_of
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


@pytest.mark.parametrize("batch", [1, 3])
def test_two_runs_of_slots_are_written_wherever_they_lie(batch):
    """Also where a window of as many slots as there are tokens would leave the cache."""
    rng = np.random.default_rng(0)
    layers, heads, slots, length, width = 2, 2, 12, 6, 4
    cache = KeyValueCache(*(jnp.asarray(rng.normal(size=(layers, batch, heads, slots, width))) for _ in range(2)))
    write = jax.jit(lambda cache, layer, slots, k, v: cache.write(layer, runs_of(slots, 12), k, v))
    for _ in range(60):
        where = np.full((batch, length), slots + 3, np.int32)
        expected = [np.array(x) for x in cache]
        k, v = rng.normal(size=(2, batch, length, heads, width)).astype(np.float32)
        for row in range(batch):
            first, second = rng.integers(0, length + 1, 2)
            second = min(second, length - first)
            low = rng.integers(0, slots - first - second + 1)
            high = rng.integers(low + first, slots - second + 1)
            filled = [*range(low, low + first), *range(high, high + second)]
            where[row, : len(filled)] = filled
            for old, new in zip(expected, (k, v), strict=True):
                old[1, row][:, filled] = new[row, : len(filled)].swapaxes(0, 1)
        for old, new in zip(expected, write(cache, jnp.int32(1), where, k, v), strict=True):
            np.testing.assert_array_equal(old, new)


def test_more_tokens_than_slots_are_refused():
    with pytest.raises(ValueError, match="5 tokens cannot be written at once into a cache of 4 slots"):
        runs_of(np.zeros((1, 5), np.int32), 4)


def test_slots_beyond_the_cache_are_not_written(model):
    cache = KeyValueCache.empty(model.config.text, batch=1, slots=4)
    ids, positions = np.array([[7]], np.int32), np.zeros((3, 1, 1), np.int32)
    spans = KeySpans(np.array([[0]], np.int32), np.array([[1]], np.int32))
    _, after = model.extend(ids, positions, spans, cache=cache, slots=jnp.array([[4]]))
    assert not after.keys.any()
    _, after = model.extend(ids, positions, spans, cache=cache, slots=jnp.array([[3]]))
    assert after.keys[:, 0, :, 3].any()
    assert not after.keys[:, 0, :, :3].any()
