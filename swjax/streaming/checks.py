"""What a chat must be before it can be laid out, with errors that say what is wrong and by how much."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from swjax.streaming.arrays import Grids
from swjax.streaming.tokens import SpecialTokens


class VisualItems(NamedTuple):
    """The images and videos of a chat in chat order, at least one row; (0, 0, 0) stands for none.

    Attributes:
        grid_thw: temporal steps, patch rows and patch columns.
        temporal_stride: temporal ids from one frame to the next.
        is_video: false for images.
        start: index of the first token of each in the chat.
    """

    grid_thw: Int[np.ndarray, "items 3"]
    temporal_stride: Float[np.ndarray, "items"]
    is_video: Bool[np.ndarray, "items"]
    start: Int[np.ndarray, "items"]


def find_visual_items(
    ids: Int32[np.ndarray, "L"],
    video_grid_thw: Grids,
    image_grid_thw: Grids,
    temporal_stride: Float[np.ndarray, "..."] | float,
    special: SpecialTokens,
    merge_size: int,
) -> VisualItems:
    """Match the grids of videos and images with their tokens in the chat.

    Args:
        ids: the chat.
        video_grid_thw, image_grid_thw: sizes in patches, each in order of appearance.
        temporal_stride: ids from one frame to the next, of all videos or of each.
        special: the ids of the pads.
        merge_size: patches on a side of a token.

    Raises:
        ValueError: if a grid is impossible, or does not match the tokens.
    """
    videos, images = (np.asarray(grid, np.int64).reshape(-1, 3) for grid in (video_grid_thw, image_grid_thw))
    _check_grid("video_grid_thw", videos, merge_size)
    _check_grid("image_grid_thw", images, merge_size)
    if (images[:, 0] != 1).any():
        raise ValueError(f"an image has one temporal step, but image_grid_thw is {images.tolist()}")
    strides = np.asarray(temporal_stride, np.float64)
    if strides.size not in (1, len(videos)):
        raise ValueError(f"second_per_grid_t has {strides.size} values, but there are {len(videos)} videos")
    if not (np.isfinite(strides) & (strides > 0)).all():
        raise ValueError(f"second_per_grid_t * tokens_per_second must be above 0, got {strides.tolist()}")

    kind = np.where(ids == special.video_pad, 1, np.where(ids == special.image_pad, 2, 0))
    (start,) = np.nonzero((kind > 0) & (np.diff(kind, prepend=0) != 0))
    is_video = kind[start] == 1
    for name, runs, grid in (("video", is_video.sum(), videos), ("image", (~is_video).sum(), images)):
        if runs != len(grid):
            raise ValueError(f"the chat has {runs} runs of <|{name}_pad|>, but there are {len(grid)} {name}s")
    grid = np.zeros((len(start), 3), np.int64)
    grid[is_video], grid[~is_video] = videos, images
    stride = np.ones(len(start))
    stride[is_video] = strides

    stop = start + np.array([_run_length(kind, int(first)) for first in start], np.int64)
    expected = grid.prod(axis=1) // merge_size**2
    for number, (first, last, tokens) in enumerate(zip(start, stop, expected, strict=True)):
        if last - first != tokens:
            name = "video" if is_video[number] else "image"
            raise ValueError(
                f"{name} {int((is_video == is_video[number])[:number].sum())} has {last - first} <|{name}_pad|> tokens "
                f"(from token {first} on), but its grid {grid[number].tolist()} makes {tokens}"
            )
    if not len(start):
        return VisualItems(np.zeros((1, 3), np.int64), np.ones(1), np.ones(1, bool), np.array([len(ids)]))
    return VisualItems(grid, stride, is_video, start)


def check_answers(
    ids: Int32[np.ndarray, "L"], counts: Int32[np.ndarray, "F"], items: VisualItems, special: SpecialTokens
) -> None:
    """Check that no finished answer ends before the schedule has reached the last frame of its turn.

    Args:
        ids: the chat.
        counts: answer tokens after each video frame of the chat.
        items: its images and videos, from `find_visual_items`.
        special: the ids of the tokens that give the chat its structure.

    Raises:
        ValueError: if one does.
    """
    opens = (ids[:-2] == special.im_start) & (ids[1:-1] == special.assistant) & (ids[2:] == special.newline)
    frames = np.where(items.is_video, items.grid_thw[:, 0], 0)
    first = 0
    for turn, start in enumerate(np.flatnonzero(opens)):
        stop = int(frames[items.start < start].sum())
        answer = ids[start + len(special.prefix) :]
        (ends,) = np.nonzero((answer == special.im_end) | (answer == special.im_start))
        needed = int(counts[first : max(stop - 1, first)].sum())
        if len(ends) and ends[0] < needed:
            raise ValueError(
                f"the answer of turn {turn} has {int(ends[0])} tokens, {needed - int(ends[0])} fewer than the schedule "
                f"speaks before the last of {stop - first} frames ({needed})"
            )
        first = stop


def _check_grid(name: str, grid: Int[np.ndarray, "items 3"], merge_size: int) -> None:
    if (grid < 1).any() or (grid[:, 1:] % merge_size).any():
        raise ValueError(
            f"{name} {grid.tolist()} is impossible: steps, rows and columns are at least 1, rows and columns multiples "
            f"of {merge_size}"
        )


def _run_length(kind: Int[np.ndarray, "L"], first: int) -> int:
    other = np.flatnonzero(kind[first:] != kind[first])
    return int(other[0]) if len(other) else len(kind) - first
