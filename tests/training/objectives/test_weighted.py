"""Weights by token against numbers that a person can check, and the objective against the obvious mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swjax.models.layers import unconstrained
from swjax.training.objectives import LOSS, balanced_weights, weighted_tokens
from swjax.training.objectives.labels import label_losses
from swjax.training.objectives.weighted import focus_losses, token_weights

SKIP, RESPOND, WORD = 7, 8, 9


def test_half_a_skip() -> None:
    """TaYS: cross entropies 0.2 of a skip, 1 and 2 of words."""
    losses, labels = jnp.array([0.2, 1.0, 2.0]), jnp.array([SKIP, WORD, WORD])
    weighed = focus_losses(losses, labels, {SKIP: 0.5}, 0.0)
    assert float(weighed.sum() / token_weights(labels, {SKIP: 0.5}).sum()) == pytest.approx(1.24)


def test_focal_states() -> None:
    """Streamo: silence at 0.9, 0.8 and 0.5, one response at 0.25, and a word with a cross entropy of 1."""
    losses = -jnp.log(jnp.array([0.9, 0.8, 0.5, 0.25, np.exp(-1.0)]))
    labels = jnp.array([SKIP, SKIP, SKIP, RESPOND, WORD])
    weights = balanced_weights({SKIP: 3, RESPOND: 1})
    assert weights == pytest.approx({SKIP: 2 / 3, RESPOND: 2.0})
    total = focus_losses(losses, labels, weights, 2.0).sum()
    assert float(total) == pytest.approx(2.681759, abs=1e-6)
    assert float(total / 5) == pytest.approx(0.536352, abs=1e-6)


def test_the_gradient_flows_through_the_focus() -> None:
    labels = jnp.array([SKIP])

    def loss(value: jax.Array) -> jax.Array:
        return focus_losses(value[None], labels, {SKIP: 1.0}, 2.0).sum()

    for cross_entropy in (0.1, 1.0, 3.0):
        p = np.exp(-cross_entropy)
        by_hand = (1 - p) ** 2 + cross_entropy * 2 * (1 - p) * p
        assert float(jax.grad(loss)(jnp.float32(cross_entropy))) == pytest.approx(by_hand, rel=1e-5)
    assert np.isfinite(jax.grad(loss)(jnp.float32(0.0)))


@pytest.mark.parametrize("focus", [0.0, 2.0])
def test_an_objective_of_weights_is_the_obvious_mean(small_model, make_batch, focus) -> None:
    batch = make_batch(4)
    model, weights = small_model(0), {3: 0.5, 5: 3.0}
    losses, slots, is_labelled = map(np.asarray, label_losses(model, batch, max_labels=12))
    labels = np.take_along_axis(batch["labels"], slots, axis=-1)[is_labelled]
    losses = losses[is_labelled]
    of_label = np.select([labels == 3, labels == 5], [0.5, 3.0], 1.0)
    special = np.isin(labels, [3, 5])
    assert 0 < special.sum() < len(labels)
    weighed = losses * of_label * np.where(special, (1 - np.exp(-losses)) ** focus, 1.0)
    objective = weighted_tokens(weights, focus=focus)
    sums = objective.sums(model, batch, max_labels=12, constrain=unconstrained)
    counts = objective.counts(batch)
    found = {name: float(sums[name] / counts[name]) for name in sums}
    assert found == pytest.approx(
        {
            LOSS: weighed.sum() / (len(labels) if focus else of_label.sum()),
            "weighted_loss": losses[special].mean(),
            "other_loss": losses[~special].mean(),
        },
        rel=1e-5,
    )


@pytest.mark.parametrize("arguments", [({},), ({7: -1.0},), ({-100: 1.0},)])
def test_impossible_weights(arguments) -> None:
    with pytest.raises(ValueError, match="weights by token and a focus must be at least 0"):
        weighted_tokens(*arguments)
    with pytest.raises(ValueError, match="weights by token and a focus must be at least 0"):
        weighted_tokens({7: 1.0}, focus=-1.0)
    with pytest.raises(ValueError, match=r"at least once, got \{7: 0\}"):
        balanced_weights({7: 0})
