"""Cross entropy with weights by token, for answers that decide when to speak: most of their labels are one skip token.

The factories give objectives for a vocabulary, to be registered where the configuration is read:

    register_objective("half_skip", weighted_tokens({DecisionTokens().skip: 0.5}))
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from swjax.models.layers import Constrain
from swjax.training.objectives.labels import IGNORED, count_labels, label_losses
from swjax.training.objectives.objective import LOSS, Batch, Objective, Predictor


def balanced_weights(counts: Mapping[int, int]) -> dict[int, float]:
    """Weights of some tokens by which each of them counts as much as the others: N / (K n) for n of N labels, K tokens.

    Args:
        counts: how often each is a label in the data set. (Streamo counts in each micro-batch, so that its loss depends
            on how a batch is divided.)

    Raises:
        ValueError: if one is never a label.
    """
    if not counts or min(counts.values()) < 1:
        raise ValueError(f"each token must be a label at least once, got {dict(counts)}")
    total = sum(counts.values())
    return {token: total / (len(counts) * count) for token, count in counts.items()}


def token_weights(labels: Int32[Array, "*B"], weights: Mapping[int, float]) -> Float[Array, "*B"]:
    """The weight of each label: that of its token, 1 if it has none, 0 where there is no label."""
    of_label = jnp.where(labels == IGNORED, 0.0, 1.0)
    for token, weight in weights.items():
        of_label = jnp.where(labels == token, weight, of_label)
    return of_label


def focus_losses(
    losses: Float[Array, "*B"], labels: Int32[Array, "*B"], weights: Mapping[int, float], focus: float
) -> Float[Array, "*B"]:
    """Cross entropy times the weight of the label's token, and for these tokens times (1 - p)^focus (focal loss).

    The gradient flows through the factor, as in Streamo.

    Args:
        losses: cross entropy of each label, in nats: -log p.
        labels: the tokens.
        weights: by token; other tokens are not changed.
        focus: exponent; 0 is none.
    """
    factor = token_weights(labels, weights)
    if focus:
        # An exact p = 1 has no gradient for exponents below 1, and none is lost for others.
        missed = jnp.maximum(-jnp.expm1(-losses), 1e-12)
        factor = factor * jnp.where(_is_one_of(labels, weights), missed**focus, 1.0)
    return losses * factor


def weighted_tokens(weights: Mapping[int, float], *, focus: float = 0.0) -> Objective:
    """An objective with weights by token.

    Without focus the loss is divided by the sum of the weights (TaYS: 0.5 for skip), with it by the number of labels
    (Streamo: focus 2, and `balanced_weights`).

    Args:
        weights: by token, from 0 on; other tokens have 1.
        focus: exponent of the focal loss on these tokens.

    Returns:
        The objective. Beside the loss it reports `weighted_loss` and `other_loss`, the plain cross entropy of labels
        that have a weight and of the rest.

    Raises:
        ValueError: if there are no weights, or a token, a weight or the exponent is below 0.
    """
    fixed = dict(weights)
    if not fixed or min(*fixed, *fixed.values(), focus) < 0:
        raise ValueError(f"tokens, weights by token and a focus must be at least 0, got {fixed} and {focus}")

    def counts(batch: Batch) -> Mapping[str, Float[Array, ""]]:
        labels = batch["labels"]
        number = count_labels(labels)
        of_weighted = _is_one_of(labels, fixed).sum().astype(jnp.float32)
        return {
            LOSS: number if focus else token_weights(labels, fixed).sum(),
            "weighted_loss": of_weighted,
            "other_loss": number - of_weighted,
        }

    def sums(
        model: Predictor, batch: Batch, *, max_labels: int, constrain: Constrain
    ) -> Mapping[str, Float[Array, ""]]:
        losses, slots, is_labelled = label_losses(model, batch, max_labels=max_labels, constrain=constrain)
        labels = jnp.where(is_labelled, jnp.take_along_axis(batch["labels"], slots, axis=-1), IGNORED)
        plain = jnp.where(is_labelled, losses, 0.0)
        return {
            LOSS: focus_losses(plain, labels, fixed, focus).sum(),
            "weighted_loss": jnp.sum(plain, where=_is_one_of(labels, fixed)),
            "other_loss": jnp.sum(plain, where=~_is_one_of(labels, fixed)),
        }

    return Objective(fields={}, counts=counts, sums=sums)


def _is_one_of(labels: Int32[Array, "*B"], tokens: Mapping[int, float]) -> Bool[Array, "*B"]:
    return jnp.isin(labels, jnp.array(list(tokens)))
