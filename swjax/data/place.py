"""The place of a run's input, carried over to another number of processes."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from swjax.plain import Json, JsonView

_ROW = "next_row"


def divide_place(states: Sequence[JsonView], fresh: JsonView, *, parts: int, part: tuple[int, int]) -> Json:
    """Where a process resumes with examples that other processes have begun.

    The reader of part p of P reads the examples p, p + P, p + 2 P and so on of one order. If all have read n, the first
    n x P of the order are done, and any number of readers can go on behind them. One that has set examples aside has
    read more than the others: then those that are not done by all come again, a few. So does, with packing, the window
    that was being packed.

    Args:
        states: of the pipeline's iterator in each process that was (`swjax.data.pipeline`).
        fresh: state of this process's iterator before its first batch.
        parts: how many parts there were.
        part: which part this process is to read, and of how many.

    Returns:
        A state for this process's iterator.
    """
    done = min(int(_find(state)[_ROW]) for state in states) * parts
    place: Json = copy.deepcopy(dict(fresh))
    _find(place)[_ROW] = (done - part[0] + part[1] - 1) // part[1]
    return place


def _find(state: Any) -> Any:
    """The part of a nested state that counts rows."""
    if _ROW in state:
        return state
    for part in state.values():
        if isinstance(part, Mapping):
            found = _find(part)
            if found is not None:
                return found
    return None
