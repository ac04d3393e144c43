"""Cross entropy without all of the logits: a part of the vocabulary at a time.

Logits of all labels and of all 152k tokens of the vocabulary are never there at once.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from swjax.models.layers import Constrain, unconstrained

VOCABULARY_PART = 8192
"""Most tokens of the vocabulary that have logits at the same time."""


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
        # Gathered along its first axis, as in `swjax.mesh.AXIS_RULES`.
        weight = constrain(weight.T, "dv")
        x = constrain(wide.astype(hidden.dtype), "BLD")
        logits = jnp.einsum("bmd,dv->bmv", x, weight, preferred_element_type=jnp.float32)
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
