"""What answers are measured by: one file a benchmark, one row in a table; `swjax evaluate --benchmark` names rows.

from swjax.evaluation.benchmarks import Benchmark, Metric, register_benchmark

register_benchmark("mine", Benchmark(my_scores, {"my_score": Metric("my score")}))
"""

from typing import Any

from swjax.evaluation.benchmarks.benchmark import Benchmark, Metric
from swjax.evaluation.benchmarks.captions import CAPTIONS, CAPTIONS_METEOR
from swjax.evaluation.benchmarks.moving_shapes import MOVING_SHAPES
from swjax.evaluation.errors import EvaluationError

_BENCHMARKS: dict[str, Benchmark[Any]] = {
    "moving_shapes": MOVING_SHAPES,
    "captions": CAPTIONS,
    "captions_meteor": CAPTIONS_METEOR,
}

__all__ = ["Benchmark", "Metric", "benchmark_names", "find_benchmark", "register_benchmark"]


def register_benchmark(name: str, benchmark: Benchmark[Any]) -> None:
    """Adds a row to the table.

    Args:
        name: what `swjax evaluate --benchmark` will say.
        benchmark: the row.

    Raises:
        ValueError: another benchmark has the name.
    """
    if _BENCHMARKS.get(name, benchmark) != benchmark:
        raise ValueError(f"there is a benchmark {name!r} already; choose another name")
    _BENCHMARKS[name] = benchmark


def benchmark_names() -> tuple[str, ...]:
    """The names of all benchmarks that are registered."""
    return tuple(_BENCHMARKS)


def find_benchmark(name: str) -> Benchmark[Any]:
    """The benchmark of a name.

    Raises:
        EvaluationError: there is none.
    """
    if name not in _BENCHMARKS:
        raise EvaluationError(f"unknown benchmark {name!r}; choose from: {', '.join(_BENCHMARKS)}")
    return _BENCHMARKS[name]
