"""The entry point of span attention and its choice of implementation."""

import functools
from collections import ChainMap
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from swjax.attention.chunked import chunked_kernel
from swjax.attention.dense import dense_kernel
from swjax.attention.gpu import gpu_kernel
from swjax.attention.kernel import Kernel, attend, by_platform, refusing_elsewhere
from swjax.attention.mosaic import fits_this_gpu, mosaic_kernel
from swjax.attention.reference import reference_kernel
from swjax.attention.sharded import AttentionSharding, check_divides, repeat_key_heads, sharded_kernel
from swjax.attention.tpu import tpu_kernel
from swjax.streaming import KeySpans

KERNELS: dict[str, Kernel] = {
    "reference": reference_kernel,
    "dense": dense_kernel,
    "chunked": chunked_kernel,
    "tpu": tpu_kernel,
    "gpu": gpu_kernel,
    "mosaic": mosaic_kernel,
}
"""All implementations by name. A row that is added here, from anywhere, is known everywhere by its name."""

NATIVE: Mapping[str, str] = MappingProxyType({"tpu": "tpu", "cuda": "gpu"})
"""What `auto` takes on a platform that a kernel has been written for; on Hopper GPUs it is `mosaic` where that fits."""

IMPLEMENTATIONS: Collection[str] = ChainMap[str, Any](KERNELS, {"auto": None}).keys()
"""What `span_attention` takes as its implementation: a view, which shows rows added to `KERNELS` later too."""

DENSE_PAIRS = 512 * 512
DENSE_KEYS = 4096
"""A row of at most so many pairs of query and key, and so many keys, is quicker on a CPU with all scores at once.

Measured forward and backward on two cores, 4 heads of 32 features: of 8 rows of 512 `dense` takes 48 to 96 ms and
`chunked` 48, of 32 rows of 136 it takes 15 and `chunked` 23. One query against 8,192 keys of 7B's size: 8 against 6.
"""


def implementation_for(
    platform: str, *, queries: int, keys: int, dtype: DTypeLike, width: int, sharded: bool = False
) -> str:
    """The implementation that `auto` stands for.

    Where a kernel has been written for the platform it is that one. A CPU takes `dense` for rows of at most
    `DENSE_PAIRS` pairs of query and key with at most `DENSE_KEYS` keys, and `chunked` beyond and on a mesh; every other
    platform takes `chunked`. What `mosaic` takes on this machine's GPU it is given; it is up to 1.6 times as fast as
    `gpu`.

    Args:
        platform: `cpu`, `tpu`, `cuda` or another that JAX knows.
        queries: T, those of one row.
        keys: S, those of one row.
        dtype: of queries, keys and values.
        width: H, features of a head.
        sharded: whether an `AttentionSharding` is given.
    """
    if platform == "cpu" and not sharded and queries * keys <= DENSE_PAIRS and keys <= DENSE_KEYS:
        return "dense"
    if platform == "cuda" and fits_this_gpu(dtype, width):
        return "mosaic"
    return NATIVE.get(platform, "chunked")


def span_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    spans: KeySpans,
    *,
    implementation: str = "auto",
    sharding: AttentionSharding | None = None,
) -> Float[Array, "B T N H"]:
    """Grouped-query attention in which query (b, t) sees the keys spans.start[b, t] <= s < spans.stop[b, t].

    Scores are scaled by H ** -0.5 and the softmax is in float32. A query with an empty span gives zeros.

    Args:
        q: queries. N must be a multiple of K; query head n reads key head n // (N // K).
        k, v: keys and values.
        spans: int32[B, T] each.
        implementation: one of `IMPLEMENTATIONS`. `auto` is chosen when the program is lowered, by the platform that it
            is compiled for (`implementation_for`).
        sharding: how to divide the work over the devices of a mesh (`swjax.attention.sharded`). Without it the
            compiler divides what it can: `reference` and `chunked`, by batch and heads, but no Pallas kernel. Fewer
            key heads than the heads are divided into are repeated, if their number divides that.

    Raises:
        ValueError: if the implementation is unknown, the heads do not divide, or the arrays or the implementation
            cannot be sharded so; when it is compiled, if the implementation cannot run on that platform.
    """
    check_implementation(implementation)
    if q.shape[-2] % k.shape[-2]:
        raise ValueError(f"{q.shape[-2]} query heads cannot share {k.shape[-2]} key heads evenly")
    if sharding is not None:
        k, v = repeat_key_heads(k, sharding), repeat_key_heads(v, sharding)
        check_divides(q, k, sharding)
    if implementation == "auto":
        return _automatic(q, k, v, spans, sharding)
    kernel = KERNELS[implementation]
    if sharding is not None and kernel.backward is None:
        raise ValueError(f"attention implementation {implementation!r} takes no sharding; choose 'chunked' or 'auto'")
    return _attend(refusing_elsewhere(implementation, kernel), q, k, v, spans, sharding)


def check_implementation(name: str) -> None:
    """Refuse what is no implementation of attention.

    Args:
        name: what is asked for.

    Raises:
        ValueError: if it is none of `IMPLEMENTATIONS`.
    """
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"unknown attention implementation {name!r}; choose one of {', '.join(IMPLEMENTATIONS)}")


def _automatic(q: Array, k: Array, v: Array, spans: KeySpans, sharding: AttentionSharding | None) -> Array:
    choose = functools.partial(
        implementation_for,
        queries=q.shape[1],
        keys=k.shape[1],
        dtype=jnp.result_type(q, k, v),
        width=q.shape[3],
        sharded=sharding is not None,
    )
    native = {platform: KERNELS[choose(platform)] for platform in (*NATIVE, "cpu")}
    return _attend(by_platform(native, chunked_kernel), q, k, v, spans, sharding)


def _attend(kernel: Kernel, q: Array, k: Array, v: Array, spans: KeySpans, sharding: AttentionSharding | None) -> Array:
    return attend(kernel if sharding is None else sharded_kernel(kernel, sharding), q, k, v, spans)


@dataclass(frozen=True)
class SpanAttention:
    """`span_attention` with its choices made, for a model to hold. Hashable by value, so that nothing recompiles.

    Attributes:
        implementation, sharding: as for `span_attention`.
    """

    implementation: str = "auto"
    sharding: AttentionSharding | None = None

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K H"],
        spans: KeySpans,
    ) -> Float[Array, "B T N H"]:
        """Attention, as `span_attention` says."""
        return span_attention(q, k, v, spans, implementation=self.implementation, sharding=self.sharding)
