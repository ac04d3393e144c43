"""Sweeps as data: which runs a grid stands for, and one table of what became of them."""

import csv
import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swjax.atomic import write_bytes
from swjax.evaluation.errors import EvaluationError
from swjax.plain import Json, JsonView
from swjax.storage import AnyPath, refused_scheme
from swjax.streaming.spec import StreamSpec

SWEEP = "sweep.json"
RESULT = "result.json"
TABLE = "results.csv"
PARQUET = "results.parquet"
RUNS = "runs"

Grid = Mapping[str, Sequence[Any]]
"""From a key of the training configuration to the values that it takes."""


@dataclass(frozen=True)
class Sweep:
    """A sweep, as a file in configs/sweeps/ describes it with `get_sweep()`.

    Attributes:
        config: the training configuration that all runs start from, such as configs/moving_shapes.py.
        grids: each stands for every combination of its values; a run that several of them have is made once.
        data: what is evaluated on: a manifest, or prepared records and their split.
        output: the folder of the sweep.
        overrides: keys of the configuration that all runs change alike.
        schedules: what each run is evaluated with: `fixed`, or `random:SEED`.
        limit: evaluate only on the first so many videos; None for all.
        max_tail: limit on tokens after the last frame.
        mode: of the engine (`swjax.inference.Mode`); None for the usual one of each run's variant.
        rows: videos that are evaluated at a time; None for the usual number.
    """

    config: str
    grids: tuple[Grid, ...]
    data: str
    output: str
    overrides: JsonView = field(default_factory=dict)
    schedules: tuple[str, ...] = ("fixed",)
    limit: int | None = None
    max_tail: int = StreamSpec.max_tail
    mode: str | None = None
    rows: int | None = None

    def __post_init__(self) -> None:
        for schedule in self.schedules:
            split_schedule(schedule)
        if not self.schedules or not all(values for grid in self.grids for values in grid.values()):
            raise EvaluationError("a sweep needs at least one schedule, and a value for each key of its grids")
        if refused := refused_scheme(self.output) or refused_scheme(self.data):
            raise EvaluationError(refused)


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        name: of its folder; says the values.
        values: the keys of the grid and their values.
    """

    name: str
    values: Json


def expand(grids: Iterable[Grid]) -> tuple[SweepRun, ...]:
    """The runs that grids stand for, in their order, the last key changing first; equal runs once."""
    runs: dict[str, SweepRun] = {}
    for grid in grids:
        for combination in itertools.product(*grid.values()):
            values = dict(zip(grid, combination, strict=True))
            name = _name(values)
            runs.setdefault(name, SweepRun(name, values))
    if not runs:
        raise EvaluationError("the sweep has no runs: its grids are empty")
    return tuple(runs.values())


def split_schedule(schedule: str) -> tuple[str, int | None]:
    """`fixed` or `random:SEED` as kind and seed."""
    kind, _, seed = schedule.partition(":")
    if schedule == "fixed":
        return kind, None
    if kind == "random" and seed.isdigit():
        return kind, int(seed)
    raise EvaluationError(f"unknown schedule {schedule!r} in the sweep; write 'fixed' or 'random:SEED'")


def group_seeds(schedules: Iterable[str]) -> dict[str, list[int]]:
    """The kinds of schedules, each with its seeds: none for `fixed`."""
    kinds: dict[str, list[int]] = {}
    for schedule in dict.fromkeys(schedules):
        kind, seed = split_schedule(schedule)
        kinds.setdefault(kind, []).extend([] if seed is None else [seed])
    return kinds


def evaluation_folder(run: AnyPath, kind: str, seed: int | None) -> AnyPath:
    """The folder of a run that holds its evaluation under a schedule.

    Args:
        run: the run's folder.
        kind: of schedule.
        seed: of a random one; None for the fixed one.
    """
    return run / ("evaluation" if seed is None else f"evaluation_{kind}_{seed}")


def result_rows(
    run: SweepRun,
    scores: Mapping[str, JsonView],
    *,
    config: JsonView,
    commit: str | None,
) -> list[Json]:
    """The rows of a run in the table, one a schedule.

    Args:
        run: the run.
        scores: the model's row of scores.json, by schedule.
        config: the run's whole configuration by dotted path.
        commit: of the code that trained it.
    """
    rows = []
    for schedule, found in scores.items():
        kind, seed = split_schedule(schedule)
        row: Json = {"run": run.name, **run.values, "schedule": kind, "schedule_seed": seed}
        row["videos"] = found["videos"]
        for name, (low, high) in found["intervals"].items():
            row |= {name: found[name], f"{name}_low": low, f"{name}_high": high}
        rows.append(row | {"commit": commit, "config": json.dumps(config, sort_keys=True)})
    return rows


def read_rows(folder: AnyPath) -> list[Json]:
    """The rows of all finished runs of a sweep's folder, in the order of the sweep.

    Raises:
        EvaluationError: if it is no sweep's folder, or a result cannot be read.
    """
    record = folder / SWEEP
    if not record.is_file():
        raise EvaluationError(f"{folder} is not the folder of a sweep; `swjax sweep` makes one")
    rows: list[Json] = []
    for name in json.loads(record.read_text())["runs"]:
        path = folder / RUNS / name / RESULT
        if path.is_file():
            try:
                rows += json.loads(path.read_text())["rows"]
            except (ValueError, KeyError) as error:
                raise EvaluationError(f"{path} cannot be read ({error!r}); delete it and sweep again") from error
    return rows


def write_tables(folder: AnyPath, rows: Sequence[JsonView]) -> list[AnyPath]:
    """Write rows as CSV and, where pyarrow is installed, as Parquet; returns the files.

    Columns that only some rows have stand empty in the others.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row if column not in ("commit", "config")))
    columns += ["commit", "config"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(folder / TABLE, text.getvalue().encode())
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return [folder / TABLE]
    columnar = pyarrow.Table.from_pydict({column: [_cell(row.get(column)) for row in rows] for column in columns})
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(columnar, sink)
    write_bytes(folder / PARQUET, sink.getvalue().to_pybytes())
    return [folder / TABLE, folder / PARQUET]


def read_table(path: AnyPath) -> list[Json]:
    """Read a table that `write_tables` wrote as CSV: numbers as numbers, empty cells left out.

    Raises:
        EvaluationError: if it is missing or no such table.
    """
    if not path.is_file():
        raise EvaluationError(f"there is no table {path}; `swjax sweep` makes one")
    lines = csv.DictReader(io.StringIO(path.read_bytes().decode(), newline=""))
    rows = [{column: _number(cell) for column, cell in row.items() if cell} for row in lines]
    if not rows or any("schedule" not in row for row in rows):
        raise EvaluationError(f"{path} is not a table of a sweep, or is empty")
    return rows


def _name(values: JsonView) -> str:
    words = [f"{key.rpartition('.')[2]}-{value}" for key, value in values.items()]
    name = "_".join(words)
    if len(name) < 100 and all(character.isalnum() or character in "-_." for character in name):
        return name
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return f"run-{digest}"


def _cell(value: object) -> int | float | str | None:
    return value if isinstance(value, int | float | str | None) else json.dumps(value)


def _number(cell: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell
