"""Scores of when something was said in a set of episodes, each with its interval over episodes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from swjax.evaluation.bootstrap import Score, mean_score, ratio_score
from swjax.evaluation.timing.omnistar import omnistar_scores


@dataclass(frozen=True)
class Episode:
    """A question about a video: after which frames something was said, and after which it was to be said.

    Attributes:
        spoken: numbers of frames, ascending; a frame after which two things were said stands twice.
        due: numbers of frames, ascending; none where there is nothing to say.
        num_frames: of the video, from the question on.
        frame_s: seconds from one frame to the next.
        kind: of the question, for priors; such as the kind of event that is asked about.

    Raises:
        ValueError: names what cannot be.
    """

    spoken: tuple[int, ...]
    due: tuple[int, ...]
    num_frames: int
    frame_s: float = 1.0
    kind: str = ""

    def __post_init__(self) -> None:
        if self.num_frames < 1 or not 0 < self.frame_s < float("inf"):
            raise ValueError(f"an episode needs frames that take time, got {self.num_frames} of {self.frame_s} s")
        for name, frames in (("spoken", self.spoken), ("due", self.due)):
            if list(frames) != sorted(frames) or any(not 0 <= frame < self.num_frames for frame in frames):
                raise ValueError(f"{name} must be ascending frames from 0 to {self.num_frames - 1}, got {frames}")


def match_times(spoken: Sequence[int], due: Sequence[int], tolerance: int) -> tuple[tuple[int, int], ...]:
    """Pairs of times, one to one: as many as there can be, and of these the nearest; of two as near the later spoken.

    Args:
        spoken, due: frames, or any whole units of time.
        tolerance: most units between the two of a pair.

    Returns:
        (spoken, due) of each pair, ascending.
    """
    difference = np.subtract.outer(np.asarray(spoken, np.float64), np.asarray(due, np.float64))
    if not difference.size:
        return ()
    most = min(difference.shape)
    distance = np.abs(difference) + (difference < 0) / (2 * most + 1)
    cost = np.where(np.abs(difference) <= tolerance, distance - (tolerance + 1) * (most + 1), 0)
    chosen = zip(*linear_sum_assignment(cost), strict=True)
    return tuple(sorted((int(spoken[one]), int(due[other])) for one, other in chosen if cost[one, other] < 0))


def timing_scores(episodes: Sequence[Episode], *, tolerances: Sequence[int] = (0, 1)) -> dict[str, Score]:
    """Scores of a set of episodes.

    Precision, recall and F1 are of all that was said and due together, not means over episodes.

    Args:
        episodes: at least one.
        tolerances: frames by which what is said may be off; the scores of each end in its number.

    Returns:
        For each tolerance `precision_0`, `recall_0`, `f1_0` and `false_alarms_per_minute_0` (what was said and has no
        pair), and above 0 `delay_s_1`, the mean of the pairs, early below 0, if there is a pair. `exact`, the share of
        episodes in which all was said after its very frame, and nothing else. OmniStar's `tim_diff_s`, `redundancy`
        and `coverage`, means over the episodes in which something was due, if there is one.

    Raises:
        ValueError: if there are no episodes.
    """
    said = np.array([len(episode.spoken) for episode in episodes])
    wanted = np.array([len(episode.due) for episode in episodes])
    minutes = np.array([episode.num_frames * episode.frame_s / 60 for episode in episodes])
    scores: dict[str, Score] = {}
    for tolerance in tolerances:
        pairs = [match_times(episode.spoken, episode.due, tolerance) for episode in episodes]
        right = np.array([len(matched) for matched in pairs])
        late_s = [
            episode.frame_s * sum(spoken - due for spoken, due in matched)
            for episode, matched in zip(episodes, pairs, strict=True)
        ]
        scores |= {
            f"precision_{tolerance}": ratio_score(right, said),
            f"recall_{tolerance}": ratio_score(right, wanted),
            f"f1_{tolerance}": ratio_score(2 * right, said + wanted),
            f"false_alarms_per_minute_{tolerance}": ratio_score(said - right, minutes),
        }
        if tolerance and right.any():
            scores[f"delay_s_{tolerance}"] = ratio_score(late_s, right)
    scores["exact"] = mean_score([episode.spoken == episode.due for episode in episodes])
    narrated = [episode for episode in episodes if episode.due]
    if narrated:
        by_video = np.array([omnistar_scores(episode.spoken, episode.due) for episode in narrated])
        by_video[:, 0] *= [episode.frame_s for episode in narrated]
        names = ("tim_diff_s", "redundancy", "coverage")
        scores |= {name: mean_score(values) for name, values in zip(names, by_video.T, strict=True)}
    return scores
