"""Dense span attention: obvious, and quadratic in memory."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from swjax.attention.blockwise import UNSEEN
from swjax.attention.kernel import Kernel
from swjax.streaming import KeySpans

# A score that no sum of real ones reaches, and still finite, so that gradients of empty spans are zeros.


def reference_span_attention(
    q: Float[Array, "B T N H"], k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], spans: KeySpans
) -> Float[Array, "B T N H"]:
    """`swjax.attention.span_attention` with a [B, K, N/K, T, S] matrix of scores.

    Queries that share a key head stand one after another, so that both products are of plain matrices.

    Args:
        q: queries. N must be a multiple of K; query head n reads key head n // (N // K).
        k, v: keys and values.
        spans: int32[B, T] each. A query whose span is empty gets zeros.

    Returns:
        In the dtype of q; scores and sums are in float32.
    """
    batch, length, heads, head_dim = q.shape
    key_heads, num_keys = k.shape[2], k.shape[1]
    group = heads // key_heads
    queries = q.reshape(batch, length, key_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
    queries = queries.reshape(batch, key_heads, group * length, head_dim)
    scores = jnp.einsum("bkth,bkhs->bkts", queries, k.transpose(0, 2, 3, 1), preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, key_heads, group, length, num_keys) * head_dim**-0.5

    keys = jnp.arange(num_keys, dtype=jnp.int32)
    seen = ((keys >= spans.start[..., None]) & (keys < spans.stop[..., None]))[:, None, None]
    scores = jnp.where(seen, scores, UNSEEN)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))) * seen
    # The largest score adds exp(0), so below 1 it is 0; and a tie in the maximum would halve the gradient.
    total = jnp.maximum(weights.sum(axis=-1, keepdims=True), 0.5)

    rows = weights.astype(v.dtype).reshape(batch, key_heads, group * length, num_keys)
    out = jnp.einsum("bkts,bksh->bkth", rows, v.transpose(0, 2, 1, 3), preferred_element_type=jnp.float32)
    out = out.reshape(batch, key_heads, group, length, head_dim) / total
    return out.transpose(0, 3, 1, 2, 4).reshape(q.shape).astype(q.dtype)


def _forward(q: Array, k: Array, v: Array, spans: KeySpans) -> tuple[Array, None]:
    return reference_span_attention(q, k, v, spans), None


def _cache(q: Array, keys: Array, values: Array, layer: Array, spans: KeySpans) -> Array:
    return reference_span_attention(q, keys[layer].swapaxes(1, 2), values[layer].swapaxes(1, 2), spans)


reference_kernel = Kernel(_forward, None, _cache)
