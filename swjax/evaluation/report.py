"""Tables of a sweep: means over seeds with intervals, in Markdown and LaTeX."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from swjax.evaluation.errors import EvaluationError
from swjax.evaluation.shown import known_metrics, metric_of
from swjax.plain import JsonView

Row = JsonView

NOT_SETTINGS = ("run", "seed", "schedule_seed", "videos", "commit", "config")

READ_AS_TRAINED = ("loss", "perplexity")
"""Metrics of captions that the model reads under the schedule of its training, whatever it speaks under."""


@dataclass(frozen=True)
class Interval:
    """A mean over runs.

    Attributes:
        mean: over seeds.
        low, high: its 95 % interval: Student's t over seeds, or the bootstrap over videos if there is one seed.
        runs: how many.
    """

    mean: float
    low: float
    high: float
    runs: int


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """The metrics of a table, known ones first."""
    found = {name.removesuffix("_low") for row in rows for name in row if name.endswith("_low")}
    known = known_metrics()
    return [name for name in known if name in found] + sorted(found - set(known))


def settings_of(rows: Sequence[Row]) -> list[str]:
    """The columns that tell runs of a table apart, seeds left out: those that take more than one value."""
    metrics = metrics_of(rows)
    others = {*NOT_SETTINGS, *metrics, *(f"{name}_{end}" for name in metrics for end in ("low", "high"))}
    columns = dict.fromkeys(column for row in rows for column in row if column not in others)
    varying = [column for column in columns if len({str(row.get(column)) for row in rows}) > 1]
    return varying or ["schedule"]


def group(rows: Sequence[Row], columns: Sequence[str]) -> dict[tuple[object, ...], list[Row]]:
    """Rows by their values in some columns, in the order of the table."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(column) for column in columns), []).append(row)
    return groups


def is_measured(row: Row, metric: str) -> bool:
    """Whether a row has a metric, and under the row's own schedule."""
    return metric in row and (row["schedule"] == "fixed" or metric not in READ_AS_TRAINED)


def summarise(rows: Sequence[Row], metric: str) -> Interval | None:
    """Mean of a metric over the seeds of one setting, schedules of a seed averaged first; None where it is missing.

    Metrics that do not depend on the schedule are taken of the fixed one alone.
    """
    by_run = group([row for row in rows if is_measured(row, metric)], ["run"])
    values = np.array([np.mean([float(row[metric]) for row in same]) for same in by_run.values()])
    if not len(values):
        return None
    if len(values) == 1:
        (same,) = by_run.values()
        low, high = (float(np.mean([float(row[f"{metric}_{end}"]) for row in same])) for end in ("low", "high"))
        return Interval(float(values[0]), low, high, 1)
    return _student(values)


def perturbation_drop(rows: Sequence[Row], metric: str, column: str) -> dict[object, Interval]:
    """What a random schedule changes, by the values of a column: score under it less the score under the fixed one.

    Differences are taken run by run, so what seeds differ by otherwise cancels.

    Args:
        rows: of a sweep.
        metric: its name.
        column: whose values are told apart.
    """
    drops: dict[object, Interval] = {}
    for (value,), same in group(rows, [column]).items():
        differences = []
        for of_run in group(same, ["run"]).values():
            fixed, perturbed = (
                [float(row[metric]) for row in of_run if row["schedule"] == kind and is_measured(row, metric)]
                for kind in ("fixed", "random")
            )
            if fixed and perturbed:
                differences.append(np.mean(perturbed) - np.mean(fixed))
        if differences:
            drops[value] = _student(np.array(differences))
    return drops


def differences(rows: Sequence[Row], metric: str, column: str, against: object) -> dict[tuple[object, str], Interval]:
    """By how much a metric is higher than at one value of a column, seed by seed, so that what seeds share cancels.

    Args:
        rows: of the table.
        metric: which.
        column: such as `variant`.
        against: the value that the others are compared with, of the type that the rows have.

    Returns:
        By value of the column and schedule; only what at least one seed has at both values.
    """
    found: dict[tuple[object, str], Interval] = {}
    for (value, schedule), same in group(rows, [column, "schedule"]).items():
        base = [row for row in rows if row.get(column) == against and row["schedule"] == schedule]
        theirs, ours = _by_seed(base, metric), _by_seed(same, metric)
        both = [seed for seed in ours if seed in theirs]
        if both and value != against:
            found[value, str(schedule)] = _student(np.array([ours[seed] - theirs[seed] for seed in both]))
    return found


def markdown_differences(
    rows: Sequence[Row], column: str, against: object, metrics: Sequence[str] | None = None
) -> str:
    """`differences` as a table, a line a value and schedule.

    Args:
        rows: of the table.
        column: such as `variant`.
        against: the value that the others are compared with, of the type that the rows have.
        metrics: which; None for all that the rows have.

    Raises:
        EvaluationError: if nothing in the table has that value.
    """
    if all(row.get(column) != against for row in rows):
        raise EvaluationError(f"no row of the table has {column} {against!r}")
    chosen = metrics_of(rows) if metrics is None else metrics
    by_metric = {name: differences(rows, name, column, against) for name in chosen}
    header = [column, "schedule", "seeds", *map(title, chosen)]
    lines = [header, ["---"] * len(header)]
    for key in dict.fromkeys(key for found in by_metric.values() for key in found):
        scores = [found.get(key) for found in by_metric.values()]
        cells = [
            "" if score is None else f"{'+' * (score.mean > 0)}{_show(score, scale(name), ' ± ')}"
            for name, score in zip(chosen, scores, strict=True)
        ]
        lines.append([*map(str, key), str(max(score.runs for score in scores if score)), *cells])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _by_seed(rows: Sequence[Row], metric: str) -> dict[object, float]:
    by_seed = group([row for row in rows if is_measured(row, metric)], ["seed"])
    return {seed: float(np.mean([row[metric] for row in same])) for (seed,), same in by_seed.items()}


def markdown_table(rows: Sequence[Row], metrics: Sequence[str] | None = None) -> str:
    """A line a setting: means over seeds, with half the width of their 95 % intervals where there are several seeds.

    `runs` says over how many; `schedules`, over how many schedules each run's scores were averaged before.

    Raises:
        EvaluationError: if a metric is not in the table.
    """
    header, lines = _cells(rows, metrics, plus_minus=" ± ")
    rule = ["---"] * len(header)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *lines))


def latex_table(rows: Sequence[Row], metrics: Sequence[str] | None = None) -> str:
    """The same table for LaTeX, with the package booktabs."""
    header, lines = _cells(rows, metrics, plus_minus=r" $\pm$ ")
    settings = len(settings_of(rows))
    columns = "l" * settings + "r" * (len(header) - settings)
    body = [" & ".join(map(_escape, cells)) + r" \\" for cells in lines]
    top = " & ".join(map(_escape, header)) + r" \\"
    parts = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", top, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(parts) + "\n"


def scale(metric: str) -> float:
    """What a metric is multiplied by when it is shown: shares are shown as percentages."""
    return 100.0 if metric_of(metric).is_share else 1.0


def title(metric: str) -> str:
    """A metric's name in tables and figures, with its unit."""
    shown = metric_of(metric)
    return shown.title + (" (%)" if shown.is_share else "")


def _cells(
    rows: Sequence[Row], metrics: Sequence[str] | None, *, plus_minus: str
) -> tuple[list[str], Iterable[list[str]]]:
    known, settings = metrics_of(rows), settings_of(rows)
    chosen = known if metrics is None else list(metrics)
    for name in chosen:
        if name not in known:
            raise EvaluationError(f"the table has no metric {name!r}; it has {', '.join(known)}")
    lines = []
    for values, same in group(rows, settings).items():
        scores = [_show(summarise(same, name), scale(name), plus_minus) for name in chosen]
        counts = [len({row["run"] for row in same}), len({_schedule_of(row) for row in same})]
        lines.append([*("" if value is None else str(value) for value in values), *map(str, counts), *scores])
    return [*settings, "runs", "schedules", *map(title, chosen)], lines


def _schedule_of(row: Row) -> tuple[object, object]:
    return row["schedule"], row.get("schedule_seed")


def _show(score: Interval | None, factor: float, plus_minus: str) -> str:
    if score is None:
        return ""
    shown = f"{factor * score.mean:.2f}"
    return shown if score.runs == 1 else f"{shown}{plus_minus}{factor * (score.high - score.low) / 2:.2f}"


def _student(values: np.ndarray) -> Interval:
    mean = float(values.mean())
    if len(values) == 1:
        return Interval(mean, mean, mean, 1)
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half, len(values))


def _escape(text: str) -> str:
    for character in "%_&#":
        text = text.replace(character, "\\" + character)
    return text
