"""The training loss: cross entropy of the labelled tokens, and logits nowhere else.

Targets are few beside frames, so the vocabulary head runs only on the slots that carry a label.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32, Shaped

from swjax.streaming import KeySpans

IGNORED = -100
"""The label of a slot that predicts nothing."""

Batch = Mapping[str, Shaped[Array, "B ..."]]
"""What the data pipeline yields: `token_ids`, `position_ids`, `span_start`, `span_stop`, `labels`, `pixel_values` and
`video_grid_thw`, rows first."""


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

    Returns:
        Slots, and whether each really carries a label (rows with fewer labels are filled up with other slots).
    """
    has_label = labels != IGNORED
    slots = jnp.argsort(~has_label, axis=-1, stable=True)[:, :max_labels]
    return slots.astype(jnp.int32), jnp.take_along_axis(has_label, slots, axis=-1)


def summed_loss(model: nnx.Module, batch: Batch, *, max_labels: int) -> Float[Array, ""]:
    """Sum over a batch of the cross entropy of every labelled slot's label, in nats.

    Labels already stand at the slot of the query that predicts them (`StreamLayout.labels`), so nothing is shifted.
    A sum, so that means over micro-batches and devices can be taken by token.

    Args:
        model: a model with `hidden(token_ids, position_ids, spans, *, pixel_values, video_grid_thw)` and `logits`.
        batch: arrays of the pipeline, batch axis first.
        max_labels: no row may carry more labels; those beyond would be left out, so check on the host
            (`swjax.training.step.put_batch` does).
    """
    hidden = model.hidden(
        batch["token_ids"],
        jnp.moveaxis(batch["position_ids"], 1, 0),
        KeySpans(start=batch["span_start"], stop=batch["span_stop"]),
        pixel_values=batch["pixel_values"],
        video_grid_thw=batch["video_grid_thw"],
    )
    slots, is_labelled = labelled_slots(batch["labels"], min(max_labels, batch["labels"].shape[-1]))
    labels = jnp.where(is_labelled, jnp.take_along_axis(batch["labels"], slots, axis=-1), 0)
    with jax.named_scope("loss"):
        logits = model.logits(jnp.take_along_axis(hidden, slots[..., None], axis=1)).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.sum(losses, where=is_labelled)
