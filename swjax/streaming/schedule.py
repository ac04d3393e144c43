"""Schedules: how many answer tokens are spoken after each frame."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32


def tokens_per_frame_schedule(schedule: int | Sequence[int], num_frames: int) -> Int32[np.ndarray, "F"]:
    """Counts of answer tokens a frame, from wait-k or from explicit counts.

    Args:
        schedule: an int k means k tokens after every frame (wait-k); a sequence gives the count of each frame.
            What is left of the answer is spoken after the last frame in either case.
        num_frames: frames (temporal grid steps) of the video.

    Raises:
        ValueError: if k is below 1, a count is negative, or there are more or fewer counts than frames.
    """
    if isinstance(schedule, int | np.integer):
        if schedule < 1:
            raise ValueError(f"wait-k needs k >= 1 tokens a frame, got {schedule}")
        return np.full(num_frames, schedule, np.int32)
    counts = np.asarray(schedule, np.int32)
    if counts.shape != (num_frames,):
        raise ValueError(f"the schedule gives counts for {counts.size} frames, but the video has {num_frames}")
    if (counts < 0).any():
        raise ValueError(f"the schedule has a negative count: {counts.min()} at frame {int(counts.argmin())}")
    return counts


def last_visible_frame(
    counts: Int32[np.ndarray, "F"], answer_index: Int32[np.ndarray, "N"] | int
) -> Int32[np.ndarray, "N"]:
    """The last frame that may be seen when an answer token is predicted: min(j // k, F - 1) for wait-k.

    Args:
        counts: tokens spoken after each frame.
        answer_index: j of the predicted answer tokens, 0 for the first after the assistant prefix.
    """
    frame = np.searchsorted(np.cumsum(counts), answer_index, side="right")
    return np.minimum(frame, len(counts) - 1).astype(np.int32)
