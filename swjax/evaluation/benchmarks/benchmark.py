"""What a benchmark is: what it knows of each video, and what answers are worth beside that."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from swjax.evaluation.bootstrap import Score
from swjax.storage import AnyPath

Truth = TypeVar("Truth")


@dataclass(frozen=True)
class Metric:
    """How a score is shown.

    Attributes:
        title: in the tables and figures of `swjax report`.
        form: of a value in the table of `swjax evaluate`, as `str.format` takes it; that of a share ends with `%}`.
        heading: in the table of `swjax evaluate`; the title if it is empty.
        is_main: whether figures show it without being asked to.
    """

    title: str
    form: str = "{:.3g}"
    heading: str = ""
    is_main: bool = True

    @property
    def is_share(self) -> bool:
        """Whether it goes from 0 to 1 and is shown as a percentage."""
        return self.form.endswith("%}")


@dataclass(frozen=True)
class Benchmark(Generic[Truth]):
    """One benchmark. Answers and truths are kept by the key of a query: a video, asked one question about all of it.

    Attributes:
        score: from answers and truths, which has all their keys, to scores by name, each with its interval; an official
            score and a strict one are two names. It raises `EvaluationError` for truths that it lacks.
        metrics: how each of these scores is shown.
        read: from the path of the benchmark's file to the truths; None if the data set's references are the truths.
        file: the name of that file, which lies beside the manifest.
        constant: from answers to choose from and truths to the one that does best when it is given to every query, and
            its score; None if there is no such baseline.
        packages: what `score` imports beyond swjax's own dependencies.
    """

    score: Callable[[Mapping[str, str], Mapping[str, Truth]], Mapping[str, Score]]
    metrics: Mapping[str, Metric]
    read: Callable[[AnyPath], Mapping[str, Truth]] | None = None
    file: str = ""
    constant: Callable[[Sequence[str], Mapping[str, Truth]], tuple[str, float]] | None = None
    packages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.read is None) != (not self.file):
            raise ValueError("a benchmark has both a file and the function that reads it, or neither")
