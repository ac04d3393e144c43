"""The training loss: cross entropy of the labelled tokens, and logits nowhere else.

Targets are few beside frames, so the vocabulary head runs only on the slots that carry a label, and for them on a part
of the vocabulary at a time: logits of all labels and all 152k tokens are never there at once.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32, Shaped

from swjax.models.layers import Constrain, unconstrained
from swjax.streaming import KeySpans

IGNORED = -100
"""The label of a slot that predicts nothing."""

VOCABULARY_PART = 8192
"""Most tokens of the vocabulary that have logits at the same time."""

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


def cross_entropy(
    hidden: Float[Array, "B M D"],
    head: Float[Array, "V D"],
    labels: Int32[Array, "B M"],
    *,
    part: int = VOCABULARY_PART,
    constrain: Constrain = unconstrained,
) -> Float[Array, "B M"]:
    """Cross entropy of each label under softmax(hidden @ head.T), in nats and float32.

    The vocabulary is run through in parts, with a running maximum and sum as in flash attention, and the backward pass
    computes each part's logits again. Parts of the vocabulary rather than of the tokens: so the head's weight, which is
    sharded, is gathered and its gradient summed over devices a part at a time, and once.

    Args:
        hidden: what the head is applied to.
        head: a vector for each token of the vocabulary.
        labels: tokens.
        part: most tokens of the vocabulary that have logits at the same time.
        constrain: lays activations out over devices.
    """
    vocabulary = head.shape[0]
    parts = _number_of_parts(vocabulary, part)
    padded = jnp.pad(head, ((0, -vocabulary % parts), (0, 0)))
    # Every parts-th token is of the same part: so each device, which holds a run of tokens, has its share of each part.
    weights = jnp.moveaxis(padded.reshape(-1, parts, head.shape[1]), 1, 0)
    # The gradient of `hidden` is summed over the parts: in float32.
    wide = constrain(hidden, "BLD").astype(jnp.float32)

    def add_part(carry: tuple[Array, ...], indexed: tuple[Array, Array]) -> tuple[tuple[Array, ...], None]:
        (maximum, total, of_label), (index, weight) = carry, indexed
        weight = constrain(weight, "vd")
        x = constrain(wide.astype(hidden.dtype), "BLD")
        logits = jnp.einsum("bmd,vd->bmv", x, weight, preferred_element_type=jnp.float32)
        logits = constrain(logits, "BLV")
        tokens = jnp.arange(logits.shape[-1], dtype=jnp.int32) * parts + index
        logits = jnp.where(tokens < vocabulary, logits, -jnp.inf)
        largest = jnp.maximum(maximum, jax.lax.stop_gradient(logits.max(axis=-1)))
        total = total * jnp.exp(maximum - largest) + jnp.exp(logits - largest[..., None]).sum(axis=-1)
        of_label += jnp.sum(logits, axis=-1, where=tokens == labels[..., None])
        return (largest, total, of_label), None

    nothing = jnp.zeros(labels.shape, jnp.float32)
    (maximum, total, of_label), _ = jax.lax.scan(
        jax.checkpoint(add_part, prevent_cse=False),
        (jnp.full(labels.shape, -jnp.inf), nothing, nothing),
        (jnp.arange(parts, dtype=jnp.int32), weights),
    )
    return maximum + jnp.log(total) - of_label


def _number_of_parts(vocabulary: int, part: int) -> int:
    """The fewest parts, none above `part` tokens, that need no padding, or the fewest if none of twice as many do."""
    fewest = -(-vocabulary // part)
    return next((parts for parts in range(fewest, 2 * fewest) if vocabulary % parts == 0), fewest)


def summed_loss(
    model: nnx.Module, batch: Batch, *, max_labels: int, constrain: Constrain = unconstrained
) -> Float[Array, ""]:
    """Sum over a batch of the cross entropy of every labelled slot's label, in nats; see `losses_by_row`.

    A sum, so that means over micro-batches and devices can be taken by token.
    """
    return jnp.sum(losses_by_row(model, batch, max_labels=max_labels, constrain=constrain))


def losses_by_row(
    model: nnx.Module, batch: Batch, *, max_labels: int, constrain: Constrain = unconstrained
) -> Float[Array, "B"]:
    """Sum over each row of a batch of the cross entropy of every labelled slot's label, in nats.

    Labels already stand at the slot of the query that predicts them (`StreamLayout.labels`), so nothing is shifted.
    Args:
        model: a model with `hidden(token_ids, position_ids, spans, *, pixel_values, video_grid_thw, slots)` and `head`.
        batch: arrays of the pipeline, batch axis first; with `slots`, the slot of each token, where rows are not in
            slot order.
        max_labels: no row may carry more labels; those beyond would be left out, so check on the host
            (`swjax.training.step.put_batch` does).
        constrain: lays activations out over devices.
    """
    hidden = model.hidden(
        batch["token_ids"],
        jnp.moveaxis(batch["position_ids"], 1, 0),
        KeySpans(start=batch["span_start"], stop=batch["span_stop"]),
        pixel_values=batch["pixel_values"],
        video_grid_thw=batch["video_grid_thw"],
        slots=batch.get("slots"),
    )
    slots, is_labelled = labelled_slots(batch["labels"], min(max_labels, batch["labels"].shape[-1]))
    labels = jnp.where(is_labelled, jnp.take_along_axis(batch["labels"], slots, axis=-1), 0)
    with jax.named_scope("loss"):
        # Divided by features while slots are picked out, so that each device picks from what it holds.
        labelled = jnp.take_along_axis(constrain(hidden, "B-S"), constrain(slots, "B-")[..., None], axis=1)
        losses = cross_entropy(constrain(labelled, "B-S"), model.head(), labels, constrain=constrain)
        return jnp.sum(losses, axis=-1, where=is_labelled)
