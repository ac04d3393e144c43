"""Rotation by a product with a permutation, as TPUs compute it, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swjax.models.rotary import Rotation, planar_rotation, rotate, turn_by_product

ROWS = jnp.arange(12).reshape(2, 6) % 5
COLUMNS = jnp.arange(12).reshape(2, 6) % 7
ROTATION = planar_rotation(ROWS, COLUMNS, head_dim=16, theta=10_000.0)


def heads(key: int, dtype: jnp.dtype) -> jax.Array:
    return jax.random.normal(jax.random.key(key), (2, 6, 3, 16), dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_rotates_to_the_bit_as_halves_do(dtype: jnp.dtype) -> None:
    x = heads(0, dtype)
    product = turn_by_product(x, *ROTATION)
    assert product.dtype == dtype
    np.testing.assert_array_equal(product, rotate(x, ROTATION))
    assert not np.allclose(product, x, atol=0.1)


def test_a_rotation_is_one_of_complex_numbers_and_may_scale() -> None:
    x = heads(1, jnp.float32)
    numbers = np.asarray(x[..., :8]) + 1j * np.asarray(x[..., 8:])
    turned = 2.0 * numbers * (np.asarray(ROTATION.cos) + 1j * np.asarray(ROTATION.sin))[:, :, None]
    found = rotate(x, ROTATION, scale=2.0)
    np.testing.assert_allclose(found, np.concatenate([turned.real, turned.imag], -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_its_gradient_is_that_of_the_sum_that_it_is(scale: float) -> None:
    x, weights = heads(2, jnp.float32), heads(3, jnp.float32)

    def plain(x: jax.Array) -> jax.Array:
        first, second = x[..., :8], x[..., 8:]
        cos, sin = (scale * part[:, :, None] for part in ROTATION)
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

    found = jax.grad(lambda x: (rotate(x, ROTATION, scale=scale) * weights).sum())(x)
    np.testing.assert_allclose(found, jax.grad(lambda x: (plain(x) * weights).sum())(x), rtol=1e-6, atol=1e-6)


def test_heads_that_are_filled_up_turn_as_they_did_and_what_fills_them_stays_zero() -> None:
    x = heads(4, jnp.float32)
    halves = jnp.pad(x.reshape(2, 6, 3, 2, 8), [(0, 0)] * 4 + [(0, 24)])
    wide: Rotation = planar_rotation(ROWS, COLUMNS, head_dim=16, theta=10_000.0, width=64)
    found = rotate(halves.reshape(2, 6, 3, 64), wide).reshape(2, 6, 3, 2, 32)
    np.testing.assert_array_equal(found[..., :8].reshape(x.shape), rotate(x, ROTATION))
    assert not found[..., 8:].any()
