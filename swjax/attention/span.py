"""The entry point of span attention and its choice of implementation."""

import functools
from collections.abc import Mapping
from types import MappingProxyType

import jax
from jaxtyping import Array, Float

from swjax.attention.chunked import chunked_kernel
from swjax.attention.kernel import Kernel, attend, by_platform, refusing_elsewhere
from swjax.attention.reference import reference_span_attention
from swjax.streaming import KeySpans

KERNELS: Mapping[str, Kernel] = MappingProxyType({"chunked": chunked_kernel})
"""Implementations with a backward pass of their own, by name. One that names platforms is what `auto` takes there."""

IMPLEMENTATIONS = ("auto", "reference", *KERNELS)
"""What `span_attention` takes as its implementation."""

DENSE_SCORES = 512 * 512
"""Up to so many pairs of query and key a row, a CPU is quicker with all scores at once (benchmarks/attention.py)."""

_NATIVE = {platform: name for name, kernel in KERNELS.items() for platform in kernel.platforms}


def implementation_for(platform: str, *, queries: int, keys: int) -> str:
    """The implementation that `auto` stands for.

    Where a kernel has been written for the platform it is that one. A CPU takes `reference` for rows of at most
    `DENSE_SCORES` pairs of query and key, and `chunked` beyond; every other platform takes `chunked`.

    Args:
        platform: `cpu`, `tpu`, `cuda` or another that JAX knows.
        queries: T, those of one row.
        keys: S, those of one row.
    """
    if platform == "cpu" and queries * keys <= DENSE_SCORES:
        return "reference"
    return _NATIVE.get(platform, "chunked")


def span_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    spans: KeySpans,
    *,
    implementation: str = "auto",
) -> Float[Array, "B T N H"]:
    """Grouped-query attention in which query (b, t) sees the keys spans.start[b, t] <= s < spans.stop[b, t].

    Scores are scaled by H ** -0.5 and the softmax is in float32. A query with an empty span gives zeros.

    Args:
        q: queries. N must be a multiple of K; query head n reads key head n // (N // K).
        k, v: keys and values.
        spans: int32[B, T] each.
        implementation: one of `IMPLEMENTATIONS`. `auto` is chosen when the program is lowered, by the platform that it
            is compiled for (`implementation_for`).

    Raises:
        ValueError: if the implementation is unknown or the heads do not divide; when it is compiled, if the
            implementation cannot run on that platform.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"unknown attention implementation {implementation!r}; choose one of {', '.join(IMPLEMENTATIONS)}"
        )
    if q.shape[-2] % k.shape[-2]:
        raise ValueError(f"{q.shape[-2]} query heads cannot share {k.shape[-2]} key heads evenly")
    if implementation == "reference":
        return reference_span_attention(q, k, v, spans)
    if implementation == "auto":
        return _automatic(q, k, v, spans)
    return attend(refusing_elsewhere(implementation, KERNELS[implementation]), q, k, v, spans)


def _automatic(q: Array, k: Array, v: Array, spans: KeySpans) -> Array:
    queries, keys = q.shape[1], k.shape[1]
    native = {platform: KERNELS[implementation_for(platform, queries=queries, keys=keys)] for platform in _NATIVE}
    if implementation_for("cpu", queries=queries, keys=keys) == "reference":
        # Outside of the differentiation rule, as `reference` has none.
        kernels = {platform: functools.partial(attend, kernel) for platform, kernel in native.items()}
        return jax.lax.platform_dependent(
            q, k, v, spans, cpu=reference_span_attention, default=functools.partial(attend, chunked_kernel), **kernels
        )
    return attend(by_platform(native, chunked_kernel), q, k, v, spans)
