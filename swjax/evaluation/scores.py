"""All scores of a set of predictions, each with its interval over videos."""

from collections.abc import Mapping, Sequence

import numpy as np

from swjax.evaluation.benchmarks import find_benchmark
from swjax.evaluation.bootstrap import Score, mean_score
from swjax.evaluation.errors import EvaluationError
from swjax.evaluation.metrics import form_scores, own_metric
from swjax.evaluation.predict import Prediction
from swjax.plain import Json, JsonView


def score_predictions(
    predictions: Sequence[Prediction],
    *,
    truths: Mapping[str, JsonView] | None = None,
    own: Mapping[str, str] | None = None,
) -> dict[str, Score]:
    """Score predictions.

    Args:
        predictions: of one split.
        truths: what the benchmarks to score by know of each video: by a benchmark's name, then by key.
        own: metrics of one's own by name, as `FILE.py:FUNCTION`.

    Returns:
        Beside the metrics: `ended`, the share of answers that ended by themselves; `words`, the mean number of tokens;
        `first_word_s` and `word_s`, the mean time in the video, in seconds, at which the first token and a token could
        be spoken: how long a viewer waits for words; and `lag_s`, how far tokens are behind the video
        (`average_lagging`). The three follow from the schedule and the answers' lengths, not from the speed of a
        machine (which `wall_times` tells).
    """
    if not predictions:
        raise EvaluationError("there are no predictions to score")
    answers, meant = [p.text for p in predictions], [p.reference for p in predictions]
    scores: dict[str, Score] = {}
    for name, known in (truths or {}).items():
        scores |= find_benchmark(name).score({p.key: p.text for p in predictions}, known)
    for name, place in (own or {}).items():
        scores[name] = own_metric(place, answers, meant)
    scores |= form_scores(answers)
    scores["ended"] = mean_score([p.ended for p in predictions])
    scores["words"] = mean_score([len(p.token_ids) for p in predictions])
    spoken = [p for p in predictions if p.video_s]
    if spoken:
        scores["first_word_s"] = mean_score([p.video_s[0] for p in spoken])
        scores["word_s"] = mean_score([sum(p.video_s) / len(p.video_s) for p in spoken])
        scores["lag_s"] = mean_score([average_lagging(p.video_s, p.duration_s) for p in spoken])
    return scores


def average_lagging(video_s: Sequence[float], duration_s: float) -> float:
    """Average lagging (STACL, Ma et al., 2019, arXiv 1810.08398, equation 8) in seconds of video.

    The mean time by which tokens are behind a speaker who spreads the same answer evenly over the video, the first at
    time 0. Tokens behind the first that has waited for the whole video are not counted: nothing more can come.

    Args:
        video_s: time in the video at which each token could be spoken.
        duration_s: time at which the video's last frame was whole.
    """
    counted = next((number for number, at in enumerate(video_s, start=1) if at >= duration_s), len(video_s))
    pace = duration_s / len(video_s)
    return sum(at - number * pace for number, at in enumerate(video_s[:counted])) / counted


def wall_times(predictions: Sequence[Prediction], *, mode: str, rows: int) -> Json:
    """How long words took on this machine; for speed, not for comparing designs.

    Videos are handed over as fast as the engine takes them in, not by their clocks, and share its passes with the rows
    beside them. Passes that had to be compiled first are not left out.

    Args:
        predictions: those that were made in another mode, or with other rows, are left out.
        mode: the engine's.
        rows: videos at a time.

    Returns:
        `videos`, how many are left; if there are any that said something, `first_word_wall_s`, the mean time from the
        beginning of a stream (when its question is handed over) to its first token, and `lag_wall_s`, the mean time
        from when words could see a frame to each token that was spoken after it and before the next (mean over a
        video's tokens, then over videos).
    """
    spoken = [p for p in predictions if p.wall_s and (p.mode, p.rows) == (mode, rows)]
    times: Json = {"mode": mode, "rows": rows, "videos": len(spoken)}
    if spoken:
        times["first_word_wall_s"] = float(np.mean([p.wall_s[0] for p in spoken]))
        times["lag_wall_s"] = float(np.mean([np.mean(np.subtract(p.wall_s, p.frame_wall_s)) for p in spoken]))
    return times


def to_row(scores: Mapping[str, Score], *, videos: int) -> Json:
    """Scores as they stand in scores.json: values by name, the number of videos, and `intervals` by name."""
    return {
        "videos": videos,
        **{name: score.value for name, score in scores.items()},
        "intervals": {name: [score.low, score.high] for name, score in scores.items()},
    }
