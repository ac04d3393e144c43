"""Time difference and fluency of LIVE (VideoLLM-online, Chen et al., CVPR 2024), teacher forced.

A turn is a run of frames after which an answer is due. The model is shown the frames, and after each may keep silent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from swjax.evaluation.bootstrap import Score, mean_score


@dataclass(frozen=True)
class LiveTurn:
    """A turn as a model has taken it.

    Attributes:
        speaks: for each learned frame of the turn whether it would speak after it (in LIVE by the rule `decide`); the
            answer is due after the last.
        speaks_later: the same for the frames that follow without the answer, as many as `live_patience` says.
        right_words: length of the right beginning of the answer, in tokens.
        words: length of the answer in tokens.
    """

    speaks: tuple[bool, ...]
    speaks_later: tuple[bool, ...]
    right_words: int
    words: int

    def __post_init__(self) -> None:
        if not self.speaks or not 0 <= self.right_words <= self.words:
            raise ValueError(f"a turn needs a frame, and at most as many right words as it has words: {self}")


def live_patience(frames: int, frames_of_next: int | None) -> int:
    """How many frames are shown to a model that has not spoken in time.

    Args:
        frames: of the turn.
        frames_of_next: of the turn that follows; None if it is the last, which is given none.
    """
    return 0 if frames_of_next is None else min(frames_of_next, frames - 1)


def frame_difference(turn: LiveTurn) -> int:
    """Frames between when the model would speak first and when the answer is due; early below 0, late above.

    A model that keeps silent to the end is late by the frames that it was given.

    Args:
        turn: as a model has taken it.
    """
    if any(turn.speaks):
        return turn.speaks.index(True) + 1 - len(turn.speaks)
    return turn.speaks_later.index(True) + 1 if any(turn.speaks_later) else len(turn.speaks_later)


def live_fluency(turn: LiveTurn) -> float:
    """Share of a turn's frames and words until the first mistake: right silence, and the right beginning of the answer.

    Words count only where the model speaks in time.

    Args:
        turn: as a model has taken it.
    """
    frames, difference = len(turn.speaks), frame_difference(turn)
    if difference == 0:
        right = frames + turn.right_words
    elif difference < 0:
        right = frames + difference
    else:
        right = frames - 1
    return right / (frames + turn.words)


def live_scores(samples: Sequence[Sequence[LiveTurn]], *, fps: float) -> dict[str, Score]:
    """Means over turns, then over samples, with their intervals.

    Args:
        samples: the turns of each, at least one.
        fps: frames a second.

    Returns:
        `time_diff_s`, the mean distance in seconds between when the model speaks and when it is to, and `fluency`.
    """
    return {
        "time_diff_s": mean_score([_mean(turns, lambda turn: abs(frame_difference(turn)) / fps) for turns in samples]),
        "fluency": mean_score([_mean(turns, live_fluency) for turns in samples]),
    }


def live_constants(
    samples: Sequence[Sequence[LiveTurn]], *, fps: float, periods: Sequence[int] = (2, 5, 10)
) -> dict[str, dict[str, Score]]:
    """The scores of speakers that see nothing: `never`, `always` and timers by the frames of each turn.

    They have all words right that a model has right, so what they lack is the timing alone.

    Args:
        samples: those that the model is scored by.
        fps: frames a second.
        periods: of the timers, which speak first after so many frames.
    """
    due: dict[str, int | None] = {"never": None, "always": 1} | {f"every_{period}": period for period in periods}

    def by_clock(turn: LiveTurn, period: int | None) -> LiveTurn:
        numbers = range(1, len(turn.speaks) + len(turn.speaks_later) + 1)
        flags = tuple(period is not None and number % period == 0 for number in numbers)
        return replace(turn, speaks=flags[: len(turn.speaks)], speaks_later=flags[len(turn.speaks) :])

    return {
        name: live_scores([[by_clock(turn, period) for turn in turns] for turns in samples], fps=fps)
        for name, period in due.items()
    }


def _mean(turns: Sequence[LiveTurn], value: Callable[[LiveTurn], float]) -> float:
    return sum(map(value, turns)) / len(turns)
