"""The paper as data: who may see whom, at which position, in which order (arXiv 2601.06843, section 3).

Everything that a model needs to know about streaming leaves this package as arrays: position ids and key spans.
Nothing here knows about models, devices or videos, and nothing here imports another part of swjax.
"""

from swjax.streaming.layout import StreamLayout, build_layout, pad_layout
from swjax.streaming.positions import frame_positions, text_positions
from swjax.streaming.schedule import last_visible_frame, tokens_per_frame_schedule
from swjax.streaming.spans import KeySpans
from swjax.streaming.tokens import SpecialTokens
from swjax.streaming.variants import DESIGNS, Design, Variant

__all__ = [
    "DESIGNS",
    "Design",
    "KeySpans",
    "SpecialTokens",
    "StreamLayout",
    "Variant",
    "build_layout",
    "frame_positions",
    "last_visible_frame",
    "pad_layout",
    "text_positions",
    "tokens_per_frame_schedule",
]
