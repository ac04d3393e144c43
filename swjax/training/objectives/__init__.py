"""What a run makes small: one file a loss, one row in a table; `config.objective` names the row.

    from swjax.training.objectives import Objective, register_objective

    register_objective("my_loss", Objective(fields={}, counts=my_counts, sums=my_sums))

An objective from outside is registered before the configuration is read: in the configuration's file, say.
"""

from swjax.training.objectives.next_token import NEXT_TOKEN
from swjax.training.objectives.objective import LOSS, Batch, Objective, Predictor
from swjax.training.objectives.weighted import balanced_weights, weighted_tokens

DEFAULT_OBJECTIVE = "next_token"

_OBJECTIVES: dict[str, Objective] = {DEFAULT_OBJECTIVE: NEXT_TOKEN}

__all__ = [
    "DEFAULT_OBJECTIVE",
    "LOSS",
    "NEXT_TOKEN",
    "Batch",
    "Objective",
    "Predictor",
    "balanced_weights",
    "find_objective",
    "objective_names",
    "register_objective",
    "weighted_tokens",
]


def register_objective(name: str, objective: Objective) -> None:
    """Adds a row to the table.

    Args:
        name: what `config.objective` will say.
        objective: the loss.

    Raises:
        ValueError: another objective has the name.
    """
    if _OBJECTIVES.get(name, objective) != objective:
        raise ValueError(f"there is an objective {name!r} already; choose another name")
    _OBJECTIVES[name] = objective


def objective_names() -> tuple[str, ...]:
    """The names of all objectives that are registered."""
    return tuple(_OBJECTIVES)


def find_objective(name: str) -> Objective:
    """The objective of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in _OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}; choose one of: {', '.join(_OBJECTIVES)}")
    return _OBJECTIVES[name]
