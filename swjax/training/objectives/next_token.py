"""The training loss of the paper: cross entropy of the labelled tokens."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from swjax.models.layers import Constrain, unconstrained
from swjax.training.objectives.labels import count_labels, label_losses
from swjax.training.objectives.objective import LOSS, Batch, Objective, Predictor


def losses_by_row(
    model: Predictor, batch: Batch, *, max_labels: int, constrain: Constrain = unconstrained
) -> Float[Array, "B"]:
    """Sum over each row of a batch of the cross entropy of every labelled slot's label, in nats.

    Args:
        model, batch, max_labels, constrain: as for `swjax.training.objectives.labels.label_losses`.
    """
    losses, _, is_labelled = label_losses(model, batch, max_labels=max_labels, constrain=constrain)
    with jax.named_scope("loss"):
        return jnp.sum(losses, axis=-1, where=is_labelled)


def _sums(model: Predictor, batch: Batch, *, max_labels: int, constrain: Constrain) -> Mapping[str, Float[Array, ""]]:
    return {LOSS: jnp.sum(losses_by_row(model, batch, max_labels=max_labels, constrain=constrain))}


def _counts(batch: Batch) -> Mapping[str, Float[Array, ""]]:
    return {LOSS: count_labels(batch["labels"])}


NEXT_TOKEN = Objective(fields={}, counts=_counts, sums=_sums)
"""The mean over all labels."""
