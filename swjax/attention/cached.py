"""Span attention to one layer of a cache of keys and values, which is read where it lies.

A layer taken out of the cache would be a copy of all its slots at every step, however few of them are seen. So the
kernels are given the whole cache and the number of the layer, and fetch the blocks of keys that spans reach.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from swjax.attention.chunked import chunked_kernel
from swjax.attention.kernel import refusing_elsewhere
from swjax.attention.span import KERNELS, NATIVE, SpanAttention, check_implementation
from swjax.streaming import KeySpans


def cache_attention(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "layers B K S H"],
    values: Float[Array, "layers B K S H"],
    layer: Int32[Any, ""],
    spans: KeySpans,
    *,
    like: Any = None,
) -> Float[Array, "B T N H"]:
    """Grouped-query attention in which query (b, t) sees the slots spans.start[b, t] <= s < spans.stop[b, t].

    Forward only. Scores, softmax and empty spans are those of `span_attention`.

    Args:
        q: queries. N must be a multiple of K; query head n reads key head n // (N // K).
        keys, values: of all layers.
        layer: number of the layer.
        spans: int32[B, T] each.
        like: what the model attends with; a `SpanAttention` names the implementation. Otherwise it is chosen when the
            program is lowered, by the platform that it is compiled for.

    Raises:
        ValueError: if the implementation is unknown, the heads do not divide, or the model's attention is divided over
            a mesh; when it is compiled, if the implementation cannot run on that platform.
    """
    if q.shape[-2] % keys.shape[2]:
        raise ValueError(f"{q.shape[-2]} query heads cannot share {keys.shape[2]} key heads evenly")
    implementation = "auto"
    if isinstance(like, SpanAttention):
        if like.sharding is not None:
            raise ValueError("a model whose attention is divided over a mesh cannot stream; load it without a mesh")
        implementation = like.implementation
    operands = q, keys, values, jnp.asarray(layer, jnp.int32), spans
    if implementation != "auto":
        check_implementation(implementation)
        return refusing_elsewhere(implementation, KERNELS[implementation]).cache(*operands)
    native = {platform: KERNELS[name].cache for platform, name in NATIVE.items()}
    return jax.lax.platform_dependent(*operands, default=chunked_kernel.cache, **native)
