"""Which blocks of queries and keys have to do with one another, against loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from swjax.attention.reach import touching_blocks, union


def test_union():
    start = np.array([[3, 9, 5], [4, 4, 9], [7, 2, 0]], np.int32)
    stop = np.array([[5, 9, 8], [4, 1, 9], [7, 5, 4]], np.int32)
    low, high = union(jnp.asarray(start), jnp.asarray(stop), 10)
    np.testing.assert_array_equal(low, [3, 0, 0])
    np.testing.assert_array_equal(high, [8, 0, 5])


@pytest.mark.parametrize("width", [16, 30, 200])
def test_touching_blocks(width):
    rng = np.random.default_rng(0)
    low = rng.integers(0, 100, (2, 9)).astype(np.int32)
    high = np.minimum(low + rng.integers(1, 30, (2, 9)), 100).astype(np.int32)
    low[1, 4] = high[1, 4] = 0
    counts, touching = touching_blocks(jnp.asarray(low), jnp.asarray(high), width=width, num_keys=100)
    assert counts.shape == (2, -(-100 // width))
    for row, which in np.ndindex(counts.shape):
        keys = set(range(which * width, (which + 1) * width))
        expected = [i for i in range(9) if keys & set(range(low[row, i], high[row, i]))]
        assert list(touching[row, which, : counts[row, which]]) == expected
