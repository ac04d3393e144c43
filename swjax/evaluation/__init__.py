"""How good the answers are: predictions over a split, and their scores."""

from swjax.evaluation.errors import EvaluationError
from swjax.evaluation.predict import Prediction, blank_frames, predict
from swjax.evaluation.shapes import ShapesScores, best_constant_answer, read_events, score_captions

__all__ = [
    "EvaluationError",
    "Prediction",
    "ShapesScores",
    "best_constant_answer",
    "blank_frames",
    "predict",
    "read_events",
    "score_captions",
]
