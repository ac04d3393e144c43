"""Layouts: a chat turned into the arrays that a model reads, in storage order.

A grouped layout stores the targets (the answers) in reverse order before the sources (system prompt, questions,
images, videos):

    slot:    0 ........... T-1 | T ............. T+S-1
    token:   a_T ...  a_2  a_1 | s_1  s_2 ....... s_S

so that the keys which any query may see are one contiguous span. The other layouts are causal in chat order or in
order of arrival.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int32

from swjax.streaming.arrange import NO_LABEL, arrange
from swjax.streaming.arrays import Grids, Schedule, XpArray
from swjax.streaming.checks import check_answers, find_visual_items
from swjax.streaming.geometry import Geometry
from swjax.streaming.schedule import tokens_per_frame_schedule
from swjax.streaming.spans import KeySpans
from swjax.streaming.spec import StreamSpec
from swjax.streaming.tokens import SpecialTokens
from swjax.streaming.variants import DESIGNS, Variant


@dataclass(frozen=True)
class StreamLayout:
    """One example, or several packed into a row, in slot (storage) order.

    Attributes:
        token_ids: int32[L].
        position_ids: int32[3, L], temporal, height and width ids.
        spans: int32[L] each, the slots that each query sees.
        labels: int32[L], the token that the query at this slot predicts; -100 where there is no loss. Labels are
            aligned to queries already: nothing has to be shifted.
        chat_index: int32[L], from slot to index in the chat; -1 for padding.
        step: int32[L], when the token arrives or is spoken: the number of the frame that has arrived last (a turn
            without frames counts as one); -1 for padding.
        is_target: bool[L], whether the token belongs to an answer.
    """

    token_ids: Int32[XpArray, "L"]
    position_ids: Int32[XpArray, "3 L"]
    spans: KeySpans
    labels: Int32[XpArray, "L"]
    chat_index: Int32[XpArray, "L"]
    step: Int32[XpArray, "L"]
    is_target: Bool[XpArray, "L"]

    def __len__(self) -> int:
        return len(self.token_ids)


def build_layout(
    input_ids: Int[np.ndarray, "L"] | Sequence[int],
    video_grid_thw: Grids,
    *,
    variant: Variant | str,
    schedule: Schedule = StreamSpec.wait_k,
    gap: int = StreamSpec.gap,
    second_per_grid_t: float | Sequence[float] = 1.0,
    tokens_per_second: float = Geometry.tokens_per_second,
    merge_size: int = Geometry.merge_size,
    image_grid_thw: Grids | None = None,
    special_tokens: SpecialTokens,
) -> StreamLayout:
    """Lay out a chat for training, or for inference if its last answer is still open.

    A chat has any number of turns, with any number of videos and images in the user's messages, or none. What an
    answer sees depends on the frames of its own turn; all earlier turns have arrived. Sources never see an answer in
    the grouped designs, the questions of later turns included. An image is there from the moment it is asked about
    and no words are scheduled after it.

    Args:
        input_ids: int[L] in chat order: system and user messages, then `<|im_start|>assistant\\n`, the answer and
            `<|im_end|>\\n`, and so on. An answer without `<|im_end|>` is open: any length is right; so is none.
        video_grid_thw: int[videos, 3], temporal steps and patch rows and columns of each video.
        variant: name or alias of a position design.
        schedule: answer tokens a frame, an int k (wait-k) or a count for each frame of the chat.
        gap: first id of the answer in GIPE.
        second_per_grid_t: seconds from one frame (temporal grid step) to the next, of all videos or of each.
        tokens_per_second, merge_size: of the model (`Geometry`); the defaults are Qwen2.5-VL's.
        image_grid_thw: int[images, 3], like `video_grid_thw`, with one temporal step.
        special_tokens: ids of the tokens that give the chat its structure.

    Raises:
        ValueError: if grids and visual tokens do not match, the gap is negative, the schedule has counts for more or
            fewer frames than there are, or a finished answer ends before the schedule reaches its last frame.
    """
    design = DESIGNS[Variant(variant)]
    if gap < 0:
        raise ValueError(f"gap must be at least 0, got {gap}")
    ids = np.asarray(input_ids, np.int32)
    items = find_visual_items(
        ids,
        video_grid_thw,
        () if image_grid_thw is None else image_grid_thw,
        np.asarray(second_per_grid_t, np.float64) * tokens_per_second,
        special_tokens,
        merge_size,
    )
    counts = tokens_per_frame_schedule(schedule, int(items.grid_thw[items.is_video, 0].sum()))
    if design.speaks_while_watching:
        check_answers(ids, counts, items, special_tokens)
    fields = arrange(
        np,
        ids,
        len(ids),
        items.grid_thw,
        counts,
        items.temporal_stride,
        design=design,
        gap=gap,
        special=special_tokens,
        merge_size=merge_size,
    )
    return StreamLayout(**fields)


def pad_layout(layout: StreamLayout, length: int) -> StreamLayout:
    """Fill a layout up to a fixed length with padding that no real token sees and that sees only itself.

    Raises:
        ValueError: if the layout is longer than `length`.
    """
    missing = length - len(layout)
    if missing < 0:
        raise ValueError(f"the layout has {len(layout)} tokens, {-missing} more than the row of {length}")
    padding = np.arange(len(layout), length, dtype=np.int32)
    return StreamLayout(
        token_ids=np.pad(layout.token_ids, (0, missing)),
        position_ids=np.pad(layout.position_ids, ((0, 0), (0, missing))),
        spans=KeySpans(np.concatenate([layout.spans.start, padding]), np.concatenate([layout.spans.stop, padding + 1])),
        labels=np.pad(layout.labels, (0, missing), constant_values=NO_LABEL),
        chat_index=np.pad(layout.chat_index, (0, missing), constant_values=-1),
        step=np.pad(layout.step, (0, missing), constant_values=-1),
        is_target=np.pad(layout.is_target, (0, missing)),
    )
