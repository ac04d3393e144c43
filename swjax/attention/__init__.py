"""Attention in which each query sees one contiguous span of keys: the one attention primitive of swjax."""

from swjax.attention.span import IMPLEMENTATIONS, implementation_for, span_attention

__all__ = ["IMPLEMENTATIONS", "implementation_for", "span_attention"]
