"""Dense span attention: obvious, and quadratic in memory."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from swjax.streaming import KeySpans


def reference_span_attention(
    q: Float[Array, "B T N H"], k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], spans: KeySpans
) -> Float[Array, "B T N H"]:
    """`swjax.attention.span_attention` with a [B, K, N/K, T, S] matrix of scores."""
    batch, length, heads, head_dim = q.shape
    key_heads = k.shape[2]
    grouped = q.reshape(batch, length, key_heads, heads // key_heads, head_dim)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=jnp.float32) * head_dim**-0.5
    keys = jnp.arange(k.shape[1], dtype=jnp.int32)
    mask = (keys >= spans.start[..., None]) & (keys < spans.stop[..., None])
    mask = mask[:, None, None]
    weights = jax.nn.softmax(scores, axis=-1, where=mask)
    out = jnp.einsum("bkgts,bskh->btkgh", weights.astype(v.dtype), v)
    return out.reshape(q.shape)
