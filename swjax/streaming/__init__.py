"""The paper as data: who may see whom, at which position, in which order (arXiv 2601.06843, section 3).

Everything that a model needs to know about streaming leaves this package as arrays: position ids and key spans.
Nothing here knows about models, devices or videos, and nothing here imports another part of swjax. The functions are
numpy's; `swjax.streaming.device` has those that run inside jit, by the same names.
"""

from swjax.streaming.conversation import (
    Answer,
    Conversation,
    Event,
    Source,
    SourceFrame,
    SourceText,
    Spoken,
    build_conversation,
    number_items,
    read_events,
    schedule_answers,
    speak_after_items,
)
from swjax.streaming.counting import ONE, OVERLAPPED, TWO, Counting, StepEnds
from swjax.streaming.decisions import (
    QWEN_DECISIONS,
    DecisionTokens,
    decide_after_items,
    order_by_time,
    thoughts_by_item,
)
from swjax.streaming.geometry import DEFAULT_GEOMETRY, Geometry
from swjax.streaming.growth import (
    PositionCounts,
    StoredCounts,
    begin_turn,
    first_positions,
    place_frame,
    place_image,
    place_text,
    place_words,
    reveal,
    store_sources,
    store_targets,
)
from swjax.streaming.layout import StreamLayout, build_layout, pad_layout
from swjax.streaming.packing import (
    PackedLayouts,
    bucket_of,
    concatenate_layouts,
    first_fit_decreasing,
    pack_layouts,
    unpack_layouts,
)
from swjax.streaming.positions import frame_positions, text_positions
from swjax.streaming.schedule import (
    aligned_schedule,
    last_visible_frame,
    random_schedule,
    schedule_from_arrivals,
    schedule_from_token_times,
    tokens_per_frame_schedule,
)
from swjax.streaming.spans import KeySpans
from swjax.streaming.speaking import (
    SPEAKING,
    Decide,
    DropTrigger,
    Moment,
    Speaking,
    Verify,
    count_words,
    drop_ratio,
    skip_is_unwanted,
    speaking_of,
    surprise,
)
from swjax.streaming.spec import StreamSpec
from swjax.streaming.tokens import DEFAULT_CHAT, ChatRule, SpecialTokens
from swjax.streaming.variants import DESIGNS, Design, Storage, Variant

__all__ = [
    "DEFAULT_CHAT",
    "DEFAULT_GEOMETRY",
    "DESIGNS",
    "ONE",
    "OVERLAPPED",
    "QWEN_DECISIONS",
    "SPEAKING",
    "TWO",
    "Answer",
    "ChatRule",
    "Conversation",
    "Counting",
    "Decide",
    "DecisionTokens",
    "Design",
    "DropTrigger",
    "Event",
    "Geometry",
    "KeySpans",
    "Moment",
    "PackedLayouts",
    "PositionCounts",
    "Source",
    "SourceFrame",
    "SourceText",
    "Speaking",
    "SpecialTokens",
    "Spoken",
    "StepEnds",
    "Storage",
    "StoredCounts",
    "StreamLayout",
    "StreamSpec",
    "Variant",
    "Verify",
    "aligned_schedule",
    "begin_turn",
    "bucket_of",
    "build_conversation",
    "build_layout",
    "concatenate_layouts",
    "count_words",
    "decide_after_items",
    "drop_ratio",
    "first_fit_decreasing",
    "first_positions",
    "frame_positions",
    "last_visible_frame",
    "number_items",
    "order_by_time",
    "pack_layouts",
    "pad_layout",
    "place_frame",
    "place_image",
    "place_text",
    "place_words",
    "random_schedule",
    "read_events",
    "reveal",
    "schedule_answers",
    "schedule_from_arrivals",
    "schedule_from_token_times",
    "skip_is_unwanted",
    "speak_after_items",
    "speaking_of",
    "store_sources",
    "store_targets",
    "surprise",
    "text_positions",
    "thoughts_by_item",
    "tokens_per_frame_schedule",
    "unpack_layouts",
]
