"""Layouts on the device: the functions of `swjax.streaming` by the same names, on jax arrays and inside jit.

Shapes are fixed and nothing is checked, since values are not known while tracing. What has no fixed shape or is
drawn at random (packing, schedules from times) is made on the host.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from swjax.streaming import conversation, growth, positions, schedule
from swjax.streaming.arrange import arrange
from swjax.streaming.arrays import XpArray
from swjax.streaming.geometry import Geometry
from swjax.streaming.layout import StreamLayout
from swjax.streaming.spec import StreamSpec
from swjax.streaming.tokens import SpecialTokens
from swjax.streaming.variants import DESIGNS, Variant

text_positions = functools.partial(positions.text_positions, xp=jnp)
frame_positions = functools.partial(positions.frame_positions, xp=jnp)
last_visible_frame = functools.partial(schedule.last_visible_frame, xp=jnp)
place_text = functools.partial(growth.place_text, xp=jnp)
place_frame = functools.partial(growth.place_frame, xp=jnp)
place_image = functools.partial(growth.place_image, xp=jnp)
place_words = functools.partial(growth.place_words, xp=jnp)
begin_turn = functools.partial(growth.begin_turn, xp=jnp)
reveal = functools.partial(growth.reveal, xp=jnp)
store_sources = functools.partial(growth.store_sources, xp=jnp)
store_targets = functools.partial(growth.store_targets, xp=jnp)

jax.tree_util.register_dataclass(StreamLayout)


def tokens_per_frame_schedule(schedule: int | Int[XpArray, ""] | Int[XpArray, "F"], num_frames: int) -> Int[Array, "F"]:
    """Counts of answer tokens a frame, from wait-k or from explicit counts.

    Args:
        schedule: a scalar k means k tokens after every frame (wait-k); a vector gives the count of each frame.
        num_frames: frames to make counts for; there may be more of them than the chat has.
    """
    return jnp.broadcast_to(jnp.asarray(schedule, jnp.int32), (num_frames,))


def build_conversation(
    token_ids: Int[Array, "L"],
    step: Int[Array, "L"],
    video_grid_thw: Int[Array, "pieces 3"],
    *,
    num_tokens: int | Int[Array, ""],
    num_sources: int | Int[Array, ""],
    variant: Variant | str,
    gap: int | Int[Array, ""] = StreamSpec.gap,
    second_per_grid_t: float | Float[Array, ""] = 1.0,
    tokens_per_second: float = Geometry.tokens_per_second,
    merge_size: int = Geometry.merge_size,
    special_tokens: SpecialTokens,
) -> StreamLayout:
    """Lay out a conversation, padded as `swjax.streaming.pad_layout` pads it.

    Args:
        token_ids, step: those of a `Conversation`; what lies behind `num_tokens` is padding.
        video_grid_thw: int[pieces, 3], at least one row; (0, 0, 0) for none.
        num_tokens, num_sources: sources and targets together, and sources alone.
        variant: the position design; fixed while compiling.
        gap: first id of the targets in GIPE.
        second_per_grid_t: seconds from one frame to the next.
        tokens_per_second: temporal ids a second; 2 in Qwen2.5-VL.
        merge_size: patches on a side of a token.
        special_tokens: ids of the tokens that give the chat its structure.
    """
    stride = jnp.asarray(second_per_grid_t, jnp.float32) * tokens_per_second
    fields = conversation.arrange_conversation(
        jnp,
        jnp.asarray(token_ids, jnp.int32),
        num_tokens,
        num_sources,
        jnp.asarray(step, jnp.int32),
        jnp.asarray(video_grid_thw, jnp.int32),
        jnp.broadcast_to(stride, (len(video_grid_thw),)),
        design=DESIGNS[Variant(variant)],
        gap=gap,
        special=special_tokens,
        merge_size=merge_size,
    )
    return StreamLayout(**fields)


def build_layout(
    input_ids: Int[Array, "L"],
    video_grid_thw: Int[Array, "items 3"],
    *,
    num_tokens: int | Int[Array, ""],
    variant: Variant | str,
    schedule: Int[Array, "F"],
    gap: int | Int[Array, ""] = StreamSpec.gap,
    second_per_grid_t: float | Float[Array, "..."] = 1.0,
    tokens_per_second: float = Geometry.tokens_per_second,
    merge_size: int = Geometry.merge_size,
    special_tokens: SpecialTokens,
) -> StreamLayout:
    """Lay out a chat, padded as `swjax.streaming.pad_layout` pads it.

    Args:
        input_ids: int[L] in chat order; what lies behind `num_tokens` is padding.
        video_grid_thw: int[items, 3], at least one row: videos and images in chat order, (0, 0, 0) for none.
        num_tokens: length of the chat.
        variant: the position design; fixed while compiling.
        schedule: answer tokens after each frame; there may be more counts than frames.
        gap: first id of the answer in GIPE.
        second_per_grid_t: seconds from one frame to the next, of all items or of each.
        tokens_per_second, merge_size: of the model (`Geometry`); the defaults are Qwen2.5-VL's.
        special_tokens: ids of the tokens that give the chat its structure.
    """
    stride = jnp.asarray(second_per_grid_t, jnp.float32) * tokens_per_second
    fields = arrange(
        jnp,
        jnp.asarray(input_ids, jnp.int32),
        num_tokens,
        jnp.asarray(video_grid_thw, jnp.int32),
        jnp.asarray(schedule, jnp.int32),
        jnp.broadcast_to(stride, (len(video_grid_thw),)),
        design=DESIGNS[Variant(variant)],
        gap=gap,
        special=special_tokens,
        merge_size=merge_size,
    )
    return StreamLayout(**fields)
