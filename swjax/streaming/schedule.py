"""Schedules as data: how many answer tokens are spoken after each frame.

A schedule is an int k (wait-k) or a count for each frame. The functions that make counts from something else, such as
arrival times, belong here too; what is left of an answer is always spoken after the last frame.
"""

from collections.abc import Sequence
from types import ModuleType

import numpy as np
from jaxtyping import Float, Int, Int32

from swjax.streaming.arrays import Schedule, Times, XpArray


def tokens_per_frame_schedule(schedule: Schedule, num_frames: int) -> Int32[np.ndarray, "F"]:
    """Counts of answer tokens a frame, from wait-k or from explicit counts.

    Args:
        schedule: an int k means k tokens after every frame (wait-k); a sequence gives the count of each frame.
        num_frames: frames (temporal grid steps) of all videos of the chat.

    Raises:
        ValueError: if k is below 1, a count is negative, or there are more or fewer counts than frames.
    """
    if isinstance(schedule, int | np.integer):
        if schedule < 1:
            raise ValueError(f"wait-k needs k >= 1 tokens a frame, got {schedule}")
        return np.full(num_frames, schedule, np.int32)
    counts = np.asarray(schedule, np.int32)
    if counts.shape != (num_frames,):
        raise ValueError(
            f"the schedule gives counts for {counts.size} frames, {abs(counts.size - num_frames)} "
            f"{'more' if counts.size > num_frames else 'fewer'} than the {num_frames} there are"
        )
    if (counts < 0).any():
        raise ValueError(f"the schedule has a negative count: {counts.min()} at frame {int(counts.argmin())}")
    return counts


def random_schedule(
    num_frames: int, *, low: int, high: int, seed: int | Sequence[int]
) -> Int32[np.ndarray, "num_frames"]:
    """Counts drawn from low..high, both included, each as likely: a perturbed schedule.

    The paper tests its designs under random schedules (its table 2) but does not give their distribution; this is
    ours. Bounds that lie evenly about k keep wait-k's mean pace.

    Args:
        num_frames: frames to make counts for.
        low: smallest count, at least 0.
        high: largest count, at least 1.
        seed: one integer or several; the same seed gives the same counts.
    """
    if not 0 <= low <= high or high < 1:
        raise ValueError(f"random counts need 0 <= low <= high and high >= 1, got {low}..{high}")
    return np.random.default_rng(seed).integers(low, high, num_frames, np.int32, endpoint=True)


def schedule_from_arrivals(arrival_s: Times, *, tokens_per_second: float) -> Int32[np.ndarray, "F"]:
    """Counts that a speaker of steady pace reaches between the arrivals of frames.

    By the time that a frame arrives, floor((its arrival - the first arrival) * tokens_per_second) tokens have been
    spoken. What comes after the last frame is unbounded, and its count 0.

    Args:
        arrival_s: when each frame arrives, seconds, ascending.
        tokens_per_second: pace of the speaker.
    """
    times = ascending("arrival_s", arrival_s)
    if not tokens_per_second > 0:
        raise ValueError(f"tokens_per_second must be above 0, got {tokens_per_second}")
    spoken = np.floor((times - times[:1]) * tokens_per_second + 1e-6)
    return np.diff(spoken, append=spoken[-1:]).astype(np.int32)


def schedule_from_token_times(token_s: Times, arrival_s: Times) -> Int32[np.ndarray, "F"]:
    """Counts of tokens whose times are known, as those of a commentary: a token belongs to the last frame before it.

    Args:
        token_s: when each token is spoken, seconds, ascending; tokens earlier than the first frame wait for it.
        arrival_s: when each frame arrives, seconds, ascending.
    """
    times, arrivals = ascending("token_s", token_s), ascending("arrival_s", arrival_s)
    frame = np.searchsorted(arrivals, times, side="right") - 1
    return np.bincount(np.maximum(frame, 0), minlength=len(arrivals)).astype(np.int32)


def aligned_schedule(
    sentence_tokens: Sequence[int],
    sentence_start_s: Sequence[float],
    arrival_s: Times,
    *,
    wait_k: int,
) -> Int32[np.ndarray, "F"]:
    """Counts for a caption whose sentences may start only after given times.

    After each frame up to `wait_k` tokens are spoken, as long as the sentence that they belong to may have started;
    otherwise the speaker waits. What is left is spoken after the last frame.

    Args:
        sentence_tokens: length of each sentence in tokens.
        sentence_start_s: earliest time of each sentence, seconds, ascending.
        arrival_s: when each frame arrives, seconds, ascending.
        wait_k: most tokens after one frame.

    Raises:
        ValueError: if the lists do not match, times go backwards, or a sentence starts after the last frame.
    """
    lengths = np.asarray(sentence_tokens, np.int64)
    starts, arrivals = ascending("sentence_start_s", sentence_start_s), ascending("arrival_s", arrival_s)
    if lengths.shape != starts.shape or (lengths < 1).any():
        raise ValueError(
            f"each sentence needs a length of at least one token and a start, got lengths {lengths.tolist()} and "
            f"starts {starts.tolist()}"
        )
    if wait_k < 1:
        raise ValueError(f"wait-k needs k >= 1 tokens a frame, got {wait_k}")
    if len(starts) and starts[-1] > arrivals[-1]:
        raise ValueError(f"a sentence starts at {starts[-1]} s, but the last frame arrives at {arrivals[-1]} s")
    allowed = np.concatenate([[0], np.cumsum(lengths)])[np.searchsorted(starts, arrivals, side="right")]
    # Spoken after frame f: the least, over the frames e up to f, of what was allowed at e and k for each frame since.
    frame = np.arange(len(arrivals))
    backlog = np.minimum.accumulate(allowed - wait_k * (frame + 1))
    spoken = np.minimum(backlog, 0) + wait_k * (frame + 1)
    return np.diff(spoken, prepend=0).astype(np.int32)


def last_visible_frame(
    counts: Int[XpArray, "F"], answer_index: Int[XpArray, "N"], *, xp: ModuleType = np
) -> Int32[XpArray, "N"]:
    """The last frame that may be seen when an answer token is predicted: min(j // k, F - 1) for wait-k.

    Args:
        counts: tokens spoken after each frame.
        answer_index: j of the predicted answer tokens, 0 for the first after the assistant prefix.
        xp: numpy or jax.numpy.
    """
    frame = xp.searchsorted(xp.cumsum(counts), answer_index, side="right")
    return xp.minimum(frame, len(counts) - 1).astype(xp.int32)


def ascending(name: str, times: object) -> Float[np.ndarray, "N"]:
    """Times as an array, if they are seconds that never go backwards.

    Args:
        name: of the times, for the message.
        times: a list of numbers.

    Raises:
        ValueError: if they are something else.
    """
    array = np.asarray(times, np.float64)
    if array.ndim != 1 or not np.isfinite(array).all() or (np.diff(array) < 0).any():
        raise ValueError(f"{name} must be a list of seconds that never goes backwards, got {array.tolist()}")
    return array
