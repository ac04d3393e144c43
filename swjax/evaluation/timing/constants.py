"""Speakers that see nothing, and what they score: what a model that watches must be better than."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from swjax.evaluation.bootstrap import Score
from swjax.evaluation.timing.episodes import Episode, timing_scores

Speaker = Callable[[Episode], tuple[int, ...]]
"""After which frames of an episode something is said, whatever is due."""

PERIODS = (2, 3, 4, 5, 6, 8)
"""Frames between two words of the timers in a table."""


def timer(num_frames: int, period: int, *, first: int = 0) -> tuple[int, ...]:
    """Every so many frames.

    Args:
        num_frames: of the video.
        period: frames from one time to the next; 1 is always.
        first: the first of them.
    """
    if period < 1 or first < 0:
        raise ValueError(f"a timer needs a period of 1 or more and a first frame from 0 on, got {period} and {first}")
    return tuple(range(first, num_frames, period))


def best_prior(training: Sequence[Episode]) -> dict[str, frozenset[int]]:
    """The frames that have the highest F1 at the exact frame of all fixed sets of frames, a set for each kind.

    F1 is a ratio of sums, so the best set holds all frames whose precision is above a bound: it is found among the
    sets of the frames with the highest precision.

    Args:
        training: episodes of which what is due and the kind are looked at.
    """
    shown: Counter[tuple[str, int]] = Counter()
    hits: Counter[tuple[str, int]] = Counter()
    for episode in training:
        shown.update((episode.kind, frame) for frame in range(episode.num_frames))
        hits.update((episode.kind, frame) for frame in set(episode.due))
    due = sum(len(episode.due) for episode in training)
    cells = sorted(hits, key=lambda cell: (-hits[cell] / shown[cell], cell))
    best, chosen, right, said = 0.0, 0, 0, 0
    for number, cell in enumerate(cells, start=1):
        right, said = right + hits[cell], said + shown[cell]
        if 2 * right / (said + due) > best:
            best, chosen = 2 * right / (said + due), number
    prior: dict[str, set[int]] = {episode.kind: set() for episode in training}
    for kind, frame in cells[:chosen]:
        prior[kind].add(frame)
    return {kind: frozenset(frames) for kind, frames in prior.items()}


def constant_speakers(
    *, periods: Sequence[int] = PERIODS, prior: Mapping[str, frozenset[int]] | None = None
) -> dict[str, Speaker]:
    """Speakers by name: `never`, `always`, `first_only`, `every_N` and, where there is one, `prior`.

    Args:
        periods: of the timers, in frames.
        prior: frames by kind, as of `best_prior`; silent on a kind that it does not know.
    """

    def every(period: int) -> Speaker:
        return lambda episode: timer(episode.num_frames, period)

    speakers: dict[str, Speaker] = {
        "never": lambda episode: (),
        "always": every(1),
        "first_only": lambda episode: (0,),
    }
    speakers |= {f"every_{period}": every(period) for period in periods}
    if prior is not None:
        speakers["prior"] = lambda episode: tuple(
            sorted(frame for frame in prior.get(episode.kind, ()) if frame < episode.num_frames)
        )
    return speakers


def score_constants(
    episodes: Sequence[Episode],
    *,
    training: Sequence[Episode] | None = None,
    periods: Sequence[int] = PERIODS,
    tolerances: Sequence[int] = (0, 1),
) -> dict[str, dict[str, Score]]:
    """The scores of constants, to be printed beside those of a model.

    Args:
        episodes: those that the model is scored by.
        training: episodes of another split, to find the best prior in; None leaves it out.
        periods: of the timers, in frames.
        tolerances: as of `timing_scores`.

    Returns:
        `timing_scores` by the speaker's name.
    """
    prior = None if training is None else best_prior(training)
    return {
        name: timing_scores([replace(one, spoken=speaker(one)) for one in episodes], tolerances=tolerances)
        for name, speaker in constant_speakers(periods=periods, prior=prior).items()
    }
