"""Attention in which each query sees one contiguous span of keys: the one attention primitive of swjax."""

from swjax.attention.cached import cache_attention, cache_axes
from swjax.attention.kernel import ATTENTION_LSE, ATTENTION_OUT, Kernel
from swjax.attention.sharded import AttentionSharding, stripe_order
from swjax.attention.span import IMPLEMENTATIONS, KERNELS, SpanAttention, implementation_for, span_attention

__all__ = [
    "ATTENTION_LSE",
    "ATTENTION_OUT",
    "IMPLEMENTATIONS",
    "KERNELS",
    "AttentionSharding",
    "Kernel",
    "SpanAttention",
    "cache_attention",
    "cache_axes",
    "implementation_for",
    "span_attention",
    "stripe_order",
]
