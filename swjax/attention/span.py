"""The entry point of span attention and its choice of implementation."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxtyping import Array, Float

from swjax.attention.reference import reference_span_attention
from swjax.streaming import KeySpans

IMPLEMENTATIONS: Mapping[str, Callable[..., Array]] = MappingProxyType({"reference": reference_span_attention})
"""Every implementation by name."""


def span_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    spans: KeySpans,
    *,
    implementation: str = "reference",
) -> Float[Array, "B T N H"]:
    """Grouped-query attention in which query (b, t) sees the keys spans.start[b, t] <= s < spans.stop[b, t].

    Scores are scaled by H ** -0.5 and the softmax is in float32. A query with an empty span gives zeros.

    Args:
        q: queries. N must be a multiple of K; query head n reads key head n // (N // K).
        k, v: keys and values.
        spans: int32[B, T] each.
        implementation: a key of `IMPLEMENTATIONS`.

    Raises:
        ValueError: if the implementation is unknown or the heads do not divide.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"unknown attention implementation {implementation!r}; choose one of {sorted(IMPLEMENTATIONS)}"
        )
    if q.shape[-2] % k.shape[-2]:
        raise ValueError(f"{q.shape[-2]} query heads cannot share {k.shape[-2]} key heads evenly")
    return IMPLEMENTATIONS[implementation](q, k, v, spans)
