"""Layouts: a chat turned into the arrays that a model reads, in storage order.

A grouped layout stores the targets (the answer) in reverse order before the sources (system prompt, question, video):

    slot:    0 ........... T-1 | T ............. T+S-1
    token:   a_T ...  a_2  a_1 | s_1  s_2 ....... s_S

so that the keys which any query may see are one contiguous span.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32

from swjax.streaming.positions import frame_positions, text_positions
from swjax.streaming.schedule import last_visible_frame, tokens_per_frame_schedule
from swjax.streaming.spans import KeySpans
from swjax.streaming.tokens import SpecialTokens
from swjax.streaming.variants import DESIGNS, Variant

NO_LABEL = -100
SPATIAL_MERGE = 2


@dataclass(frozen=True)
class StreamLayout:
    """One example in slot (storage) order.

    Attributes:
        token_ids: int32[L].
        position_ids: int32[3, L], temporal, height and width ids.
        spans: int32[L] each, the slots that each query sees.
        labels: int32[L], the token that the query at this slot predicts; -100 where there is no loss. Labels are
            aligned to queries already: nothing has to be shifted.
        chat_index: int32[L], from slot to index in the chat; -1 for padding.
    """

    token_ids: Int32[np.ndarray, "L"]
    position_ids: Int32[np.ndarray, "3 L"]
    spans: KeySpans
    labels: Int32[np.ndarray, "L"]
    chat_index: Int32[np.ndarray, "L"]

    def __len__(self) -> int:
        return len(self.token_ids)


def build_layout(
    input_ids: Int[np.ndarray, "L"],
    video_grid_thw: Int[np.ndarray, "videos 3"],
    *,
    variant: Variant | str,
    schedule: int | Sequence[int] = 3,
    gap: int = 10_000,
    second_per_grid_t: float = 1.0,
    tokens_per_second: float = 2.0,
    special_tokens: SpecialTokens,
) -> StreamLayout:
    """Lay out a chat of one answer for training, or for inference if the answer is still open.

    Args:
        input_ids: int[L] in chat order: system and user turns with the videos, then `<|im_start|>assistant\\n`, the
            answer and `<|im_end|>\\n`. An answer that lacks `<|im_end|>` is open: any length is right.
        video_grid_thw: int[videos, 3], temporal steps and patch rows and columns of each video.
        variant: a `Variant`, its value or its alias.
        schedule: answer tokens a frame, an int k (wait-k) or a count for each frame.
        gap: first id of the answer in GIPE.
        second_per_grid_t: seconds from one frame (temporal grid step) to the next.
        tokens_per_second: temporal ids a second; 2 in Qwen2.5-VL.
        special_tokens: ids of the tokens that give the chat its structure.

    Raises:
        ValueError: if the chat has no answer or several, grid and video tokens do not match, the gap is negative, or
            a finished answer ends before the schedule reaches the last frame.
    """
    design = DESIGNS[Variant(variant)]
    if gap < 0:
        raise ValueError(f"gap must be at least 0, got {gap}")
    ids = np.asarray(input_ids, np.int32)
    grid = np.asarray(video_grid_thw, np.int64).reshape(-1, 3)
    num_sources = _answer_start(ids, special_tokens)
    num_targets = len(ids) - num_sources
    positions, sources_end, frame_index = _sources(
        ids[:num_sources], grid, second_per_grid_t * tokens_per_second, special_tokens
    )
    first_target = design.first_target(sources_end, gap)
    positions = np.concatenate([positions, text_positions(first_target, num_targets)], axis=1)
    labels = _labels(ids, num_sources, special_tokens)
    if not design.grouped:
        index = np.arange(len(ids), dtype=np.int32)
        return StreamLayout(ids, positions, KeySpans(np.zeros_like(index), index + 1), labels, index)

    visible = _visible_frames(ids[num_sources:], int(grid[:, 0].sum()), schedule, special_tokens)
    seen_sources = np.searchsorted(frame_index, visible, side="right").astype(np.int32)
    chat_index = np.concatenate([np.arange(len(ids) - 1, num_sources - 1, -1), np.arange(num_sources)]).astype(np.int32)
    target_slots = np.arange(num_targets, dtype=np.int32)
    start = np.concatenate([target_slots, np.full(num_sources, num_targets, np.int32)])
    stop = np.concatenate([seen_sources[::-1], np.arange(1, num_sources + 1, dtype=np.int32)]) + np.int32(num_targets)
    return StreamLayout(
        ids[chat_index], positions[:, chat_index], KeySpans(start, stop), labels[chat_index], chat_index
    )


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
    )


def _answer_start(ids: Int32[np.ndarray, "L"], special: SpecialTokens) -> int:
    """Index of the `<|im_start|>` that opens the one assistant turn."""
    opens = (ids[:-2] == special.im_start) & (ids[1:-1] == special.assistant) & (ids[2:] == special.newline)
    (starts,) = np.nonzero(opens)
    if len(starts) != 1:
        raise ValueError(
            f"the chat must have exactly one assistant turn (<|im_start|>assistant\\n), found {len(starts)}"
        )
    return int(starts[0])


def _sources(
    ids: Int32[np.ndarray, "S"], grid: Int[np.ndarray, "videos 3"], temporal_stride: float, special: SpecialTokens
) -> tuple[Int32[np.ndarray, "3 S"], int, Int32[np.ndarray, "S"]]:
    """Position ids of the sources, the first id free after them, and the number of frames begun at each source."""
    is_video = ids == special.video_pad
    frame_tokens = grid[:, 1] * grid[:, 2] // SPATIAL_MERGE**2
    video_tokens = grid[:, 0] * frame_tokens
    if is_video.sum() != video_tokens.sum():
        raise ValueError(
            f"the chat has {int(is_video.sum())} <|video_pad|> tokens, but video_grid_thw {grid.tolist()} makes "
            f"{int(video_tokens.sum())}"
        )
    if (ids == special.image_pad).any():
        raise ValueError("the chat has <|image_pad|> tokens; only videos can be laid out")
    (video_starts,) = np.nonzero(is_video & ~np.concatenate([[False], is_video[:-1]]))
    if len(video_starts) != len(grid):
        raise ValueError(f"the chat has {len(video_starts)} runs of <|video_pad|>, but there are {len(grid)} videos")

    pieces, frames_begun = [], []
    position, index, frames = 0, 0, 0
    for video_start, (steps, rows, columns), length, per_frame in zip(
        video_starts, grid, video_tokens, frame_tokens, strict=True
    ):
        text_length = int(video_start) - index
        pieces.append(text_positions(position, text_length))
        frames_begun.append(np.full(text_length, frames))
        position += text_length
        ids_of_video = frame_positions(
            position, np.arange(steps), rows // SPATIAL_MERGE, columns // SPATIAL_MERGE, temporal_stride
        )
        pieces.append(ids_of_video)
        frames_begun.append(frames + 1 + np.repeat(np.arange(steps), per_frame))
        position, index, frames = int(ids_of_video.max()) + 1, int(video_start + length), frames + int(steps)
    pieces.append(text_positions(position, len(ids) - index))
    frames_begun.append(np.full(len(ids) - index, frames))
    sources_end = position + len(ids) - index
    return np.concatenate(pieces, axis=1), sources_end, np.concatenate(frames_begun).astype(np.int32)


def _visible_frames(
    targets: Int32[np.ndarray, "T"], num_frames: int, schedule: int | Sequence[int], special: SpecialTokens
) -> Int32[np.ndarray, "T"]:
    """How many frames each target's query sees. Visibility belongs to the token that is predicted."""
    if num_frames == 0:
        raise ValueError("a streaming layout needs a video with at least one frame")
    counts = tokens_per_frame_schedule(schedule, num_frames)
    prefix_length = len(special.prefix)
    (ends,) = np.nonzero(targets[prefix_length:] == special.im_end)
    needed = int(counts[:-1].sum())
    if len(ends) and ends[0] < needed:
        raise ValueError(
            f"the answer has {int(ends[0])} tokens, {needed - int(ends[0])} fewer than the schedule speaks before the "
            f"last of {num_frames} frames ({needed})"
        )
    predicted = np.arange(len(targets)) - prefix_length + 1
    return last_visible_frame(counts, np.maximum(predicted, 0)) + 1


def _labels(ids: Int32[np.ndarray, "L"], num_sources: int, special: SpecialTokens) -> Int32[np.ndarray, "L"]:
    """Label of each query in chat order: the answer and its `<|im_end|>`, not the prefix nor the final newline."""
    labels = np.full(len(ids), NO_LABEL, np.int32)
    first = num_sources + len(special.prefix)
    (ends,) = np.nonzero(ids[first:] == special.im_end)
    stop = first + int(ends[0]) + 1 if len(ends) else len(ids)
    labels[first - 1 : stop - 1] = ids[first:stop]
    return labels
