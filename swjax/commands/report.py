"""`swjax report`: tables and figures of a sweep."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from swjax.atomic import replacing, write_text
from swjax.commands.say import UsageError, any_path, console, refusing
from swjax.plain import Json
from swjax.storage import make_folder

if TYPE_CHECKING:
    from swjax.evaluation.report import Row

NAME = "report"
HELP = "make tables and figures of a sweep"

DESCRIPTION = """\
Make tables (table.md, table.tex) and figures of a sweep. Scores are means over seeds, and before that, of each run,
over its random schedules; behind ± stands half the width of the 95 % interval (Student's t over seeds). The figures, as
far as the sweep varies what they need: each metric against the gap, with intervals (gap.png); the variants side by side
(variants.png); what a random schedule changes, run by run (perturbation.png); and quality against latency, the mean
time in the video at which a token can be spoken (latency.png). Figures need the extra `plots`.
"""
EXAMPLE = """\
examples:
  swjax report --sweep runs/sweeps/gipe_gap
  swjax report --table results.csv --output docs/results --metrics event_accuracy,grammatical
  swjax report --sweep runs/sweeps/variants --against variant=gdpe
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--sweep", type=any_path, metavar="DIR", help="folder of a sweep; its finished runs are gathered"
    )
    source.add_argument(
        "--table", type=any_path, action="append", metavar="CSV", help="table of a sweep; may be repeated"
    )
    parser.add_argument("--output", type=any_path, metavar="DIR", help="(default: report in the sweep's folder)")
    parser.add_argument("--metrics", metavar="A,B,...", help="which metrics (default: all in tables, the main drawn)")
    parser.add_argument(
        "--against",
        metavar="KEY=VALUE",
        help="a table of differences too, seed by seed: of every other value of KEY less VALUE (differences.md)",
    )
    parser.add_argument("--no-figures", action="store_true", help="tables alone")


@refusing
def run(args: argparse.Namespace) -> int:
    """Write the tables and draw the figures."""
    from swjax.evaluation.report import latex_table, markdown_table

    out = console()
    rows = _rows(args)
    folder = args.output or (args.sweep or args.table[0].parent) / "report"
    metrics = args.metrics.split(",") if args.metrics else None
    tables = {"table.md": markdown_table(rows, metrics), "table.tex": latex_table(rows, metrics)}
    if args.against:
        tables["differences.md"] = _differences(rows, args.against, metrics)
    figures = {} if args.no_figures else _figures(rows, metrics)
    make_folder(folder)
    for name, text in tables.items():
        write_text(folder / name, text)
    for name, figure in figures.items():
        with replacing(folder / f"{name}.png") as file:
            figure.savefig(file, dpi=110, format="png")
    out.print(tables["table.md"], markup=False, soft_wrap=True)
    written = [*tables, *(f"{name}.png" for name in figures)]
    out.print(f"written to {folder}: {', '.join(written)}", soft_wrap=True)
    return 0


def _rows(args: argparse.Namespace) -> "list[Row]":
    from swjax.evaluation.sweep import read_rows, read_table

    if args.sweep is None:
        return [row for table in args.table for row in read_table(table)]
    rows = read_rows(args.sweep)
    if not rows:
        raise UsageError(f"no run of {args.sweep} is finished yet")
    return list(rows)


def _differences(rows: "list[Row]", against: str, metrics: list[str] | None) -> str:
    from swjax.evaluation.report import markdown_differences

    column, equals, value = against.partition("=")
    if not equals:
        raise UsageError(f"--against {against} is not of the form KEY=VALUE, such as variant=gdpe")
    same = [row[column] for row in rows if str(row.get(column)) == value]
    return markdown_differences(rows, column, same[0] if same else value, metrics)


def _figures(rows: "Sequence[Row]", metrics: list[str] | None) -> Json:
    try:
        from swjax.evaluation.plots import draw_all
    except ImportError as error:
        raise UsageError(
            f"figures need matplotlib ({error}): pip install 'swjax[plots]', or ask for --no-figures"
        ) from error
    return draw_all(rows, metrics)
