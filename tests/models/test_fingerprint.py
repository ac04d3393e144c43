import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swjax.models.parameters import fingerprint


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_every_bit_counts_and_its_place(dtype):
    leaf = jnp.arange(32).reshape(4, 8).astype(dtype)
    usual = fingerprint({"a": leaf})
    assert fingerprint({"a": leaf + 0}) == usual
    changed = {
        "value": {"a": leaf.at[2, 3].add(1)},
        "swap": {"a": leaf.at[0, jnp.array([0, 1])].set(leaf[0, jnp.array([1, 0])])},
        "shape": {"a": leaf.reshape(8, 4)},
        "name": {"b": leaf},
        "more": {"a": leaf, "b": leaf},
    }
    assert len({usual, *map(fingerprint, changed.values())}) == 1 + len(changed)


def test_sharding_does_not_count():
    leaf = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8)), jnp.float32)
    mesh = jax.make_mesh((8,), ("x",))
    spread = jax.device_put(leaf, jax.NamedSharding(mesh, jax.P(None, "x")))
    assert fingerprint({"a": spread}) == fingerprint({"a": leaf})
