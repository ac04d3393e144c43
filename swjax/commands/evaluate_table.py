"""The table of scores that `swjax evaluate` prints."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from swjax.plain import JsonView


def show_scores(out: Console, rows: Mapping[str, JsonView]) -> None:
    """Print a line a score and a column a row of scores.json, of which the first shows its intervals."""
    from swjax.evaluation.report import READ_AS_TRAINED
    from swjax.evaluation.shown import known_metrics, metric_of

    scores = dict.fromkeys(name for row in rows.values() for name in row.get("intervals", {}))
    order = dict.fromkeys([*READ_AS_TRAINED, *known_metrics(), *scores])
    table = Table()
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_column(row, justify="right")
    for name in filter(scores.__contains__, order):
        metric = metric_of(name)
        cells = (_cell(row, name, metric.form, is_first=not number) for number, row in enumerate(rows.values()))
        table.add_row(metric.heading or metric.title, *cells)
    out.print(table)


def _cell(row: JsonView, name: str, form: str, *, is_first: bool) -> str:
    if name not in row:
        return ""
    if not is_first:
        return form.format(row[name])
    low, high = row["intervals"][name]
    return f"{form.format(row[name])}  [dim]{form.format(low)} to {form.format(high)}[/]"
