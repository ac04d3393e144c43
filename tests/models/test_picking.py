"""What is picked has the values and the gradient of a look-up, without a scatter."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swjax.models.picking import look_up, pick, visual_places

NUM_ROWS, LENGTH, NUM_FEATURES, WIDTH = 3, 40, 24, 8


def _look_up(x: jax.Array, index: jax.Array, place: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, index[..., None], axis=1)


def _gradient(picked: Callable[..., jax.Array], x: jax.Array, index: jax.Array, place: jax.Array) -> np.ndarray:
    weights = np.random.default_rng(1).normal(size=(*index.shape, x.shape[-1])).astype(np.float32)
    return np.asarray(jax.grad(lambda x: jnp.sum(picked(x, index, place) * weights))(x))


def test_a_permutation_is_undone_in_the_gradient() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(NUM_ROWS, LENGTH, WIDTH)), jnp.float32)
    order = jnp.argsort(jnp.asarray(rng.random((NUM_ROWS, LENGTH))), axis=1)
    given = (x, order, jnp.argsort(order, axis=1))
    np.testing.assert_array_equal(pick(*given), _look_up(*given))
    np.testing.assert_array_equal(_gradient(pick, *given), _gradient(_look_up, *given))


@pytest.mark.parametrize("some_are_dropped", [False, True], ids=["all", "kept"])
@pytest.mark.parametrize("is_shuffled", [False, True], ids=["slot order", "shuffled"])
def test_features_of_visual_tokens(some_are_dropped: bool, is_shuffled: bool) -> None:
    rng = np.random.default_rng(2)
    is_visual, slots, kept = [], [], []
    expected = np.zeros((NUM_ROWS, LENGTH), int)
    for row in range(NUM_ROWS):
        has_token = rng.random(NUM_FEATURES) < 0.7 if some_are_dropped else np.arange(NUM_FEATURES) < 20 - row
        visual_slots = np.sort(rng.permutation(LENGTH)[: has_token.sum()])
        slot_of = rng.permutation(LENGTH) if is_shuffled else np.arange(LENGTH)
        feature_of_slot = np.full(LENGTH, -1)
        feature_of_slot[visual_slots] = np.flatnonzero(has_token)
        expected[row] = feature_of_slot[slot_of]
        is_visual.append(expected[row] >= 0)
        slots.append(slot_of)
        kept.append(has_token)
    visual = jnp.asarray(is_visual)
    index, place = visual_places(
        visual,
        NUM_FEATURES,
        slots=jnp.asarray(slots, jnp.int32) if is_shuffled else None,
        kept=jnp.asarray(kept) if some_are_dropped else None,
    )
    np.testing.assert_array_equal(np.asarray(index)[visual], expected[visual])

    x = jnp.asarray(rng.normal(size=(NUM_ROWS, NUM_FEATURES, WIDTH)), jnp.float32)
    pick_visual, look_up_visual = (
        lambda x, index, place, used=used: jnp.where(visual[..., None], used(x, index, place), 0)
        for used in (pick, _look_up)
    )
    found = _gradient(pick_visual, x, index, place)
    np.testing.assert_array_equal(found, _gradient(look_up_visual, x, index, place))
    assert np.count_nonzero(found.any(axis=-1)) == visual.sum()


def test_no_gradient_is_scattered() -> None:
    x, order = jnp.ones((1, 8, 4)), jnp.arange(8)[None]
    program = jax.jit(jax.grad(lambda x: pick(x, order, order).sum())).lower(x).as_text()
    assert "gather" in program
    assert "scatter" not in program


def test_the_gradient_of_a_token_that_comes_often_is_not_lost_in_rounding() -> None:
    ids = jnp.asarray([[0] * 1000, [1] * 999 + [3]])
    gradient = jax.grad(lambda weight: jnp.sum(look_up(weight, ids) * jnp.bfloat16(0.125)))(
        jnp.ones((5, 2), jnp.bfloat16)
    )
    assert gradient.dtype == jnp.bfloat16
    expected = jnp.asarray([125.0, 999 / 8, 0.0, 0.125, 0.0]).astype(jnp.bfloat16)
    np.testing.assert_array_equal(gradient, jnp.stack([expected] * 2, axis=1))


def test_rows_looked_up_have_the_gradient_of_an_index() -> None:
    rng = np.random.default_rng(3)
    weight, ids = jnp.asarray(rng.normal(size=(7, 4)), jnp.float32), jnp.asarray(rng.integers(0, 7, (2, 9)))
    factors = rng.normal(size=(2, 9, 4)).astype(np.float32)
    np.testing.assert_array_equal(look_up(weight, ids), weight[ids])
    found, expected = (
        jax.grad(lambda weight, used=used: jnp.sum(used(weight, ids) * factors))(weight)
        for used in (look_up, lambda weight, ids: weight[ids])
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
