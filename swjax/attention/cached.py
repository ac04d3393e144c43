"""Span attention to one layer of a cache of keys and values, which is read where it lies.

A layer taken out of the cache would be a copy of all its slots at every step, however few of them are seen. So the
kernels are given the whole cache and the number of the layer, and fetch the blocks of keys that spans reach.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int32

from swjax.attention.chunked import chunked_kernel
from swjax.attention.kernel import refusing_elsewhere
from swjax.attention.sharded import AttentionSharding
from swjax.attention.span import KERNELS, NATIVE, SpanAttention, check_implementation
from swjax.streaming import KeySpans


def cache_attention(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "layers B K S H"],
    values: Float[Array, "layers B K S H"],
    layer: Int32[Array, ""],
    spans: KeySpans,
    *,
    like: object = None,
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
        ValueError: if the implementation is unknown, the heads do not divide, or the model's attention divides rows
            along the sequence; when it is compiled, if the implementation cannot run on that platform.
    """
    if q.shape[-2] % keys.shape[2]:
        raise ValueError(f"{q.shape[-2]} query heads cannot share {keys.shape[2]} key heads evenly")
    operands = q, keys, values, jnp.asarray(layer, jnp.int32), spans
    if not isinstance(like, SpanAttention):
        return _attend("auto", operands)
    if like.implementation != "auto":
        check_implementation(like.implementation)
    attend = functools.partial(_attend, like.implementation)
    if like.sharding is None:
        return attend(operands)
    batch, heads = cache_axes(like.sharding)
    queries, stored = PartitionSpec(batch, None, heads), PartitionSpec(None, batch, heads)
    of_spans = KeySpans(*[PartitionSpec(batch)] * 2)
    specs, mesh = (queries, stored, stored, PartitionSpec(), of_spans), like.sharding.mesh
    return jax.shard_map(attend, mesh=mesh, in_specs=(specs,), out_specs=queries, check_vma=False)(operands)


def cache_axes(sharding: AttentionSharding) -> tuple[tuple[str, ...] | None, str | None]:
    """The mesh axes that divide the rows of a cache, and its heads.

    Raises:
        ValueError: if rows are to be divided along the sequence.
    """
    if sharding.context_shards > 1:
        raise ValueError("a cache is not divided along its slots; give the mesh no context axis")
    return sharding.batch or None, sharding.heads


def _attend(implementation: str, operands: tuple[Array, Array, Array, Array, KeySpans]) -> Float[Array, "B T N H"]:
    if implementation != "auto":
        return refusing_elsewhere(implementation, KERNELS[implementation]).cache(*operands)
    native = {platform: KERNELS[name].cache for platform, name in NATIVE.items()}
    return jax.lax.platform_dependent(*operands, default=chunked_kernel.cache, **native)
