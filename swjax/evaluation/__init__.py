"""How good the answers are: predictions over a split, and their scores."""

from swjax.evaluation.benchmarks.moving_shapes import best_constant_answer, read_events, score_captions
from swjax.evaluation.bootstrap import Score
from swjax.evaluation.errors import EvaluationError
from swjax.evaluation.predict import (
    LaterAnswer,
    Prediction,
    blank_frames,
    later_predictions,
    perturbed_schedule,
    predict,
)
from swjax.evaluation.scores import score_predictions, wall_times

__all__ = [
    "EvaluationError",
    "LaterAnswer",
    "Prediction",
    "Score",
    "best_constant_answer",
    "blank_frames",
    "later_predictions",
    "perturbed_schedule",
    "predict",
    "read_events",
    "score_captions",
    "score_predictions",
    "wall_times",
]
