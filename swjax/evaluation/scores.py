"""All scores of a set of predictions, each with its interval over videos."""

from collections.abc import Mapping, Sequence
from typing import Any

from swjax.evaluation.bootstrap import Score, mean_score
from swjax.evaluation.errors import EvaluationError
from swjax.evaluation.metrics import form_scores, own_metric, text_scores
from swjax.evaluation.predict import Prediction
from swjax.evaluation.shapes import Events, score_captions


def score_predictions(
    predictions: Sequence[Prediction],
    *,
    events: Mapping[str, Events] | None = None,
    references: bool = True,
    meteor: bool = False,
    own: Mapping[str, str] | None = None,
) -> dict[str, Score]:
    """Score predictions.

    Args:
        predictions: of one split.
        events: what happens in each video, for Moving Shapes.
        references: whether to compare with the references (`swjax.evaluation.metrics.text_scores`).
        meteor: whether to compute METEOR.
        own: metrics of one's own by name, as `FILE.py:FUNCTION`.

    Returns:
        Beside the metrics: `ended`, the share of answers that ended by themselves; `words`, the mean number of tokens;
        `first_word_s` and `word_s`, the mean time in the video, in seconds, at which the first token and a token could
        be spoken: how long a viewer waits for words. They follow from the schedule and the answers' lengths, not from
        the speed of a machine.
    """
    if not predictions:
        raise EvaluationError("there are no predictions to score")
    answers, meant = [p.text for p in predictions], [p.reference for p in predictions]
    scores: dict[str, Score] = {}
    if events is not None:
        scores |= score_captions({p.key: p.text for p in predictions}, events)
    if references:
        scores |= text_scores(answers, meant, meteor=meteor)
    for name, place in (own or {}).items():
        scores[name] = own_metric(place, answers, meant)
    scores |= form_scores(answers)
    scores["ended"] = mean_score([p.ended for p in predictions])
    scores["words"] = mean_score([len(p.token_ids) for p in predictions])
    spoken = [p for p in predictions if p.video_s]
    if spoken:
        scores["first_word_s"] = mean_score([p.video_s[0] for p in spoken])
        scores["word_s"] = mean_score([sum(p.video_s) / len(p.video_s) for p in spoken])
    return scores


def to_row(scores: Mapping[str, Score], *, videos: int) -> dict[str, Any]:
    """Scores as they stand in scores.json: values by name, the number of videos, and `intervals` by name."""
    return {
        "videos": videos,
        **{name: score.value for name, score in scores.items()},
        "intervals": {name: [score.low, score.high] for name, score in scores.items()},
    }
