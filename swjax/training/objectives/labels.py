"""The labels of a batch: how many there are, which slots carry them, and what the model says of them.

Labels already stand at the slot of the query that predicts them (`StreamLayout.labels`), so nothing is shifted. Targets
are few beside frames, so the vocabulary head runs only on the slots that carry a label.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from swjax.models.layers import Constrain, unconstrained
from swjax.models.picking import pick
from swjax.streaming import KeySpans
from swjax.training.objectives.cross_entropy import cross_entropy
from swjax.training.objectives.objective import Batch, Predictor

IGNORED = -100
"""The label of a slot that predicts nothing."""


def count_labels(labels: Int32[Array, "*B L"]) -> Float[Array, ""]:
    """The number of labelled slots, as a float for dividing by."""
    return jnp.sum(labels != IGNORED).astype(jnp.float32)


def count_tokens(batch: Batch) -> Int32[Array, ""]:
    """The number of slots that are not padding (token id 0 that sees only itself)."""
    is_padding = (batch["token_ids"] == 0) & (batch["span_stop"] - batch["span_start"] == 1)
    return jnp.sum(~is_padding)


def labelled_slots(
    labels: Int32[Array, "B L"], max_labels: int
) -> tuple[Int32[Array, "B max_labels"], Bool[Array, "B max_labels"]]:
    """The first `max_labels` labelled slots of each row, in slot order.

    Args:
        labels: of each slot; below 0 is none.
        max_labels: the most of a row.

    Returns:
        Slots, and whether each really carries a label (rows with fewer labels are filled up with other slots).
    """
    has_label = labels != IGNORED
    slots = jnp.argsort(~has_label, axis=-1, stable=True)[:, :max_labels]
    return slots.astype(jnp.int32), jnp.take_along_axis(has_label, slots, axis=-1)


def _ranks(labels: Int32[Array, "B L"]) -> Int32[Array, "B L"]:
    """Where each slot stands among `labelled_slots`, if it is one of them."""
    has_label = labels != IGNORED
    labelled, others = (jnp.cumsum(chosen, axis=-1, dtype=jnp.int32) for chosen in (has_label, ~has_label))
    return jnp.where(has_label, labelled, labelled[:, -1:] + others) - 1


def label_losses(
    model: Predictor, batch: Batch, *, max_labels: int, constrain: Constrain = unconstrained
) -> tuple[Float[Array, "B M"], Int32[Array, "B M"], Bool[Array, "B M"]]:
    """The cross entropy of every labelled slot's label, in nats.

    Args:
        model: runs on the batch.
        batch: arrays of the pipeline, batch axis first; with `slots`, the slot of each token, where rows are not in
            slot order.
        max_labels: no row may carry more labels; those beyond would be left out, so check on the host
            (`swjax.training.step.put_batch` does).
        constrain: lays activations out over devices.

    Returns:
        Losses, the slots that they are of (indices along L), and whether each of these really carries a label, for the
        min(max_labels, L) = M slots of `labelled_slots`.
    """
    hidden = model.hidden(
        batch["token_ids"],
        jnp.moveaxis(batch["position_ids"], 1, 0),
        KeySpans(start=batch["span_start"], stop=batch["span_stop"]),
        pixel_values=batch["pixel_values"],
        video_grid_thw=batch["video_grid_thw"],
        slots=batch.get("slots"),
        **({"kept": batch["kept"]} if "kept" in batch else {}),
    )
    slots, is_labelled = labelled_slots(batch["labels"], min(max_labels, batch["labels"].shape[-1]))
    labels = jnp.where(is_labelled, jnp.take_along_axis(batch["labels"], slots, axis=-1), 0)
    with jax.named_scope("loss"):
        # Divided by features while slots are picked out, so that each device picks from what it holds.
        labelled = pick(constrain(hidden, "B-S"), constrain(slots, "B-"), constrain(_ranks(batch["labels"]), "B-"))
        losses = cross_entropy(constrain(labelled, "B-S"), model.head(), labels, constrain=constrain)
    return losses, slots, is_labelled
