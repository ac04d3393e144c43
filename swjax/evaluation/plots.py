"""Figures of a sweep, with matplotlib (the extra `plots`)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from swjax.evaluation.report import (
    READ_AS_TRAINED,
    Interval,
    Row,
    group,
    is_measured,
    metrics_of,
    perturbation_drop,
    scale,
    summarise,
    title,
)
from swjax.evaluation.shown import known_metrics


def draw_all(rows: Sequence[Row], metrics: Sequence[str] | None = None) -> dict[str, Figure]:
    """The figures that a table gives: by name, without those for which nothing varies in it.

    Args:
        rows: of the table.
        metrics: which to draw; by default the main ones that it has.
    """
    known = metrics_of(rows)
    main = [name for name, metric in known_metrics().items() if metric.is_main]
    chosen = [name for name in (metrics or main) if name in known] or known[:4]
    figures = {}
    column = next((name for name in ("gap", "variant") if _varies(rows, name)), None)
    if _varies(rows, "gap"):
        figures["gap"] = metric_against_gap(rows, chosen)
    if _varies(rows, "variant"):
        figures["variants"] = variants_side_by_side(rows, chosen)
    perturbed = [name for name in chosen if name not in READ_AS_TRAINED]
    if column is not None and perturbed and _varies(rows, "schedule"):
        figures["perturbation"] = perturbation(rows, perturbed, column)
    qualities = [name for name in chosen if name != "word_s"]
    if column is not None and qualities and "word_s" in known:
        figures["latency"] = latency_against_quality(rows, qualities, column)
    return figures


def metric_against_gap(rows: Sequence[Row], metrics: Sequence[str]) -> Figure:
    """Each metric against GIPE's gap, a line a schedule: means over seeds, 95 % intervals, and the single runs.

    Bars are the intervals over seeds, the band is that over videos: the mean of the runs' bootstrap intervals.
    """
    rows = [row for row in rows if row.get("gap") is not None]
    figure, axes = _panels(metrics)
    for axis, metric in zip(axes, metrics, strict=True):
        for (schedule,), same in group(rows, ["schedule"]).items():
            by_gap = {gap: found for (gap,), found in sorted(group(same, ["gap"]).items())}
            _line(axis, by_gap, metric, str(schedule))
        axis.set_xscale("symlog", linthresh=16)
        gaps = sorted({row["gap"] for row in rows})
        axis.set_xticks(gaps, [f"{gap:,}" for gap in gaps], rotation=45)
        axis.set_xlabel("gap")
        axis.set_ylabel(title(metric))
    axes[0].legend(title="schedule")
    return figure


def variants_side_by_side(rows: Sequence[Row], metrics: Sequence[str]) -> Figure:
    """A bar a variant and schedule for each metric, with 95 % intervals."""
    figure, axes = _panels(metrics)
    variants = [variant for (variant,) in group(rows, ["variant"])]
    schedules = [schedule for (schedule,) in group(rows, ["schedule"])]
    width = 0.8 / len(schedules)
    for axis, metric in zip(axes, metrics, strict=True):
        for number, schedule in enumerate(schedules):
            places, scores = [], []
            for place, variant in enumerate(variants):
                same = [row for row in rows if row["variant"] == variant and row["schedule"] == schedule]
                if (score := summarise(same, metric)) is not None:
                    places.append(place + (number - (len(schedules) - 1) / 2) * width)
                    scores.append(score)
            means, errors = _error_bars(scores, scale(metric))
            axis.bar(places, means, width, yerr=errors, capsize=2, label=str(schedule))
        axis.set_xticks(range(len(variants)), list(map(str, variants)), rotation=45, ha="right")
        axis.set_ylabel(title(metric))
    axes[0].legend(title="schedule")
    return figure


def perturbation(rows: Sequence[Row], metrics: Sequence[str], column: str) -> Figure:
    """What a random schedule changes, by the values of a column: above zero it helps.

    Args:
        rows: of a sweep.
        metrics: by name.
        column: whose values are told apart.
    """
    figure, axes = _panels(metrics)
    for axis, metric in zip(axes, metrics, strict=True):
        drops = perturbation_drop(rows, metric, column)
        means, errors = _error_bars(drops.values(), scale(metric))
        axis.errorbar(range(len(drops)), means, yerr=errors, fmt="o", capsize=3)
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.set_xticks(range(len(drops)), [str(value) for value in drops], rotation=45, ha="right")
        axis.set_ylabel(f"{title(metric)},\nrandom - fixed")
        axis.set_xlabel(column)
    return figure


def latency_against_quality(rows: Sequence[Row], metrics: Sequence[str], column: str) -> Figure:
    """Each metric against the mean time in the video at which a token can be spoken.

    Args:
        rows: of a sweep.
        metrics: by name.
        column: of the latency.
    """
    figure, axes = _panels(metrics)
    for axis, metric in zip(axes, metrics, strict=True):
        for (value,), same in group([row for row in rows if row["schedule"] == "fixed"], [column]).items():
            time, score = summarise(same, "word_s"), summarise(same, metric)
            if time is None or score is None:
                continue
            (x,), x_errors = _error_bars([time], 1.0)
            (y,), y_errors = _error_bars([score], scale(metric))
            axis.errorbar([x], [y], xerr=x_errors, yerr=y_errors, fmt="o", capsize=2, label=str(value))
        axis.set_xlabel("mean token after (s of video)")
        axis.set_ylabel(title(metric))
    axes[0].legend(title=column, fontsize="small")
    return figure


def _panels(metrics: Sequence[str]) -> tuple[Figure, list[Axes]]:
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    figure = Figure(figsize=(4 * columns, 3.2 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for unused in axes[len(metrics) :]:
        unused.remove()
    return figure, list(axes[: len(metrics)])


def _line(axis: Axes, by_place: Mapping[Any, Sequence[Row]], metric: str, label: str) -> None:
    scores = {place: summarise(rows, metric) for place, rows in by_place.items()}
    there = {place: score for place, score in scores.items() if score is not None}
    if not there:
        return
    means, errors = _error_bars(there.values(), scale(metric))
    drawn = axis.errorbar(list(there), means, yerr=errors, marker="o", capsize=3, label=label)
    low, high = (
        [
            scale(metric) * np.mean([row[f"{metric}_{end}"] for row in by_place[place] if is_measured(row, metric)])
            for place in there
        ]
        for end in ("low", "high")
    )
    axis.fill_between(list(there), low, high, color=drawn.lines[0].get_color(), alpha=0.12, linewidth=0)
    singles = [
        (place, scale(metric) * row[metric]) for place in there for row in by_place[place] if is_measured(row, metric)
    ]
    axis.scatter(
        [place for place, _ in singles],
        [value for _, value in singles],
        s=8,
        color=drawn.lines[0].get_color(),
        alpha=0.4,
    )


def _error_bars(scores: Iterable[Interval], factor: float) -> tuple[list[float], list[list[float]]]:
    scores = list(scores)
    means = [factor * score.mean for score in scores]
    below = [max(0.0, factor * (score.mean - score.low)) for score in scores]
    above = [max(0.0, factor * (score.high - score.mean)) for score in scores]
    return means, [below, above]


def _varies(rows: Sequence[Row], column: str) -> bool:
    return len({row.get(column) for row in rows} - {None}) > 1
