import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from swjax.training.objectives.cross_entropy import cross_entropy


@pytest.mark.parametrize(("vocabulary", "part"), [(40, 40), (40, 8), (37, 8), (41, 20)])
def test_cross_entropy_by_parts_is_that_of_all_logits(vocabulary: int, part: int) -> None:
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(2, 5, 16)).astype(np.float32), rng.normal(size=(vocabulary, 16)).astype(np.float32)
    labels = rng.integers(0, vocabulary, (2, 5)).astype(np.int32)
    labels[0, 0], labels[0, 1] = 0, vocabulary - 1
    weights = rng.normal(size=(2, 5)).astype(np.float32)

    def by_parts(hidden: jax.Array, head: jax.Array) -> jax.Array:
        return (cross_entropy(hidden, head, labels, part=part) * weights).sum()

    def at_once(hidden: jax.Array, head: jax.Array) -> jax.Array:
        return (optax.softmax_cross_entropy_with_integer_labels(hidden @ head.T, labels) * weights).sum()

    found = jax.jit(jax.value_and_grad(by_parts, argnums=(0, 1)))(hidden, head)
    expected = jax.jit(jax.value_and_grad(at_once, argnums=(0, 1)))(hidden, head)
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5), found, expected)


def test_large_logits_do_not_overflow() -> None:
    hidden, head = jnp.full((1, 1, 1), 100.0), jnp.arange(12.0)[:, None]
    losses = cross_entropy(hidden, head, np.array([[10]], np.int32), part=4)
    np.testing.assert_allclose(losses, [[100.0]])


def test_no_more_than_a_part_has_logits() -> None:
    hidden, head, labels = jnp.zeros((1, 64, 8)), jnp.zeros((4096, 8)), jnp.zeros((1, 64), jnp.int32)
    loss = jax.jit(jax.grad(lambda hidden, head: cross_entropy(hidden, head, labels, part=256).sum(), argnums=(0, 1)))
    assert "tensor<1x64x256xf32>" in loss.lower(hidden, head).as_text()
    assert "x64x4096x" not in loss.lower(hidden, head).as_text()
