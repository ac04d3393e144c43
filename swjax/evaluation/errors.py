"""The error of an evaluation."""


class EvaluationError(ValueError):
    """An evaluation that cannot be made, and why."""
