"""`swjax sweep`: train and evaluate every run of a grid, and make one table of them."""

import argparse
import concurrent.futures
import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from rich.console import Console

from swjax.atomic import write_json
from swjax.commands.say import UsageError, any_path, console, refuse
from swjax.plain import Json
from swjax.python_file import PythonFileError, call_python_file, find_config
from swjax.storage import AnyPath, as_path, is_remote, local_lock, make_folder, writing_file

if TYPE_CHECKING:
    from swjax.evaluation.sweep import Sweep, SweepRun

NAME = "sweep"
HELP = "train and evaluate every run of a grid, restartable, into one table"

DESCRIPTION = """\
Train and evaluate every run of a grid (variant, gap, wait-k, seed, any key of the configuration) as a file in
configs/sweeps/ describes it. Each run trains, is evaluated on the held-out videos under each schedule, and adds its
rows to results.csv (and results.parquet where pyarrow is installed), with its configuration and commit.

Stopped at any time and started again, a sweep makes no finished run twice and goes on within the others, and ends with
the same table. Runs are made one after another, --parallel N of them at a time, or elsewhere: --print-jobs prints one
command a run for the scripts in launch/; the same sweep without --only then gathers them. `swjax report` draws the
table.

Keys of the configuration are changed for all runs by --config.KEY=VALUE.
"""
EXAMPLE = """\
examples:
  swjax sweep --config configs/sweeps/gipe_gap.py
  swjax sweep --config configs/sweeps/variants.py --parallel 4 --config.steps=100
  swjax sweep --config configs/sweeps/gipe_gap.py --print-jobs
"""


_INTERRUPTED = 130


class _StoppedError(Exception):
    """A verb was interrupted or preempted; the sweep ends with its exit status."""

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb; overrides of the configuration stay over for `run`."""
    parser.add_argument(
        "--config", type=any_path, required=True, metavar="FILE", help="a sweep's file, or a name: sweeps/gipe_gap"
    )
    parser.add_argument("--output", type=any_path, metavar="DIR", help="folder of the sweep (default: the file's)")
    parser.add_argument("--data", metavar="NAME", help="what to evaluate on (default: the file's)")
    parser.add_argument("--limit", type=int, metavar="N", help="evaluate on the first N videos (default: the file's)")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument("--only", action="append", metavar="RUN", help="make this run alone, without the table")
    parser.add_argument("--print-jobs", action="store_true", help="print the command of each unfinished run, and stop")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Run the verb; what is left over of the command line changes the configuration of all runs."""
    from swjax.evaluation import EvaluationError
    from swjax.training.config import ConfigError

    try:
        return _sweep(args, extra)
    except (UsageError, ConfigError, EvaluationError) as error:
        return refuse(error)
    except _StoppedError as stopped:
        console().print("stopped; the same command goes on where it was")
        return stopped.status
    except KeyboardInterrupt:
        console().print("stopped; the same command goes on where it was")
        return _INTERRUPTED


def _sweep(args: argparse.Namespace, extra: Sequence[str]) -> int:
    from swjax.evaluation.sweep import RUNS, SWEEP, expand, read_rows, write_tables

    out = console()
    sweep = load_sweep(args.config)
    changes = {"output": args.output and str(args.output), "data": args.data, "limit": args.limit}
    sweep = replace(sweep, **{name: value for name, value in changes.items() if value is not None})
    folder, runs = as_path(sweep.output), expand(sweep.grids)
    definitions = {run.name: _definition(sweep, run, extra) for run in runs}
    unknown = sorted(set(args.only or ()) - set(definitions))
    if unknown:
        raise UsageError(f"the sweep has no run {unknown[0]!r}; its runs are {', '.join(definitions)}")
    chosen = [run for run in runs if not args.only or run.name in args.only]
    left = [run for run in chosen if not _is_finished(folder / RUNS / run.name, definitions[run.name])]
    if args.print_jobs:
        for run in left:
            out.print(shlex.join(["swjax", *_job(args, extra, run)]), soft_wrap=True, markup=False)
        return 0

    make_folder(folder)
    if not args.only:
        record = {"config": str(args.config), "runs": [run.name for run in runs]}
        write_json(folder / SWEEP, record)
    out.print(f"{folder}: {len(chosen)} runs, {len(chosen) - len(left)} of them finished before", soft_wrap=True)
    if args.parallel > 1:
        failed = _run_apart(args, extra, left, folder, out)
    else:
        failed = []
        for run in left:
            out.rule(run.name, align="left")
            with _locked(folder / RUNS / run.name):
                # Another process may have finished it while this one waited.
                done = _is_finished(folder / RUNS / run.name, definitions[run.name])
                if not (done or _make(sweep, run, folder / RUNS / run.name, definitions[run.name], extra)):
                    failed.append(run.name)
    if not args.only and (rows := read_rows(folder)):
        files = write_tables(folder, rows)
        out.print(f"written: {', '.join(map(str, files))} ({len(rows)} rows)", soft_wrap=True)
    if failed:
        out.print(f"{len(failed)} runs failed: {', '.join(failed)}; the same command tries them again", soft_wrap=True)
    return 1 if failed else 0


def load_sweep(path: AnyPath) -> "Sweep":
    """Read a file with `get_sweep()`.

    Raises:
        UsageError: if it cannot be read or returns something else.
    """
    from swjax.evaluation.sweep import Sweep

    try:
        sweep = call_python_file(find_config(path, kind="sweep"), "get_sweep", kind="sweep")
    except PythonFileError as error:
        raise UsageError(str(error)) from error
    if not isinstance(sweep, Sweep):
        raise UsageError(f"{path}: get_sweep() must return a swjax.evaluation.sweep.Sweep, got {type(sweep).__name__}")
    return sweep


def _definition(sweep: "Sweep", run: "SweepRun", extra: Sequence[str]) -> Json:
    """All that a run's result depends on; checks the run's configuration."""
    from swjax.training.config import KEYS, flatten
    from swjax.training.config_file import load_config

    config = flatten(load_config(sweep.config, _overrides(sweep, run, extra)))
    for key in KEYS:
        # Where it is written, how fast it is made; and what results that were made before the key do not hold.
        if key.free or (key.later and config[key.path] == key.default):
            config.pop(key.path)
    evaluation = {name: asdict(sweep)[name] for name in ("data", "schedules", "limit", "max_tail")}
    if sweep.mode is not None:
        evaluation["mode"] = sweep.mode
    return json.loads(json.dumps({"values": run.values, "config": config, "evaluation": evaluation}))


def _overrides(sweep: "Sweep", run: "SweepRun", extra: Sequence[str]) -> list[str]:
    values = {**sweep.overrides, **run.values}
    return [*(f"--config.{key}={value}" for key, value in values.items()), *extra]


def _is_finished(folder: AnyPath, definition: Json) -> bool:
    from swjax.evaluation.sweep import RESULT

    path = folder / RESULT
    if not path.is_file():
        return False
    before = json.loads(path.read_text())["definition"]
    if before == definition:
        return True
    changed = [
        f"{part}.{key}"
        for part in definition
        for key in {**before[part], **definition[part]}
        if before[part].get(key) != definition[part].get(key)
    ]
    raise UsageError(
        f"{folder} holds a finished run that was defined otherwise ({', '.join(sorted(changed))}); "
        "choose another --output, or delete it"
    )


def _make(sweep: "Sweep", run: "SweepRun", folder: AnyPath, definition: Json, extra: Sequence[str]) -> bool:
    """Train and evaluate a run, or go on with it; returns whether all went well."""
    from swjax.commands.main import main  # here, because main imports this module
    from swjax.evaluation.sweep import (
        RESULT,
        evaluation_folder,
        group_seeds,
        result_rows,
        split_schedule,
    )

    train = ["train", "--config", sweep.config, "--run-dir", str(folder), *_overrides(sweep, run, extra)]
    if _failed(main(train)):
        return False
    for kind, seeds in group_seeds(sweep.schedules).items():
        words = ["evaluate", "--checkpoint", folder, "--data", sweep.data, "--schedule", kind]
        words += ["--schedule-seed", *seeds] if kind == "random" else []
        for name in ("limit", "max_tail", "mode", "rows"):
            value = getattr(sweep, name)
            words += [] if value is None else [f"--{name.replace('_', '-')}", value]
        if _failed(main([str(word) for word in words])):
            return False
    scores = {}
    for schedule in sweep.schedules:
        output = evaluation_folder(folder, *split_schedule(schedule))
        scores[schedule] = json.loads((output / "scores.json").read_text())["model"]
    commit = _commit(folder, definition["config"]["steps"])
    rows = result_rows(run, scores, config=definition["config"], commit=commit)
    result = {"definition": definition, "rows": rows}
    write_json(folder / RESULT, result)
    return True


@contextlib.contextmanager
def _locked(folder: AnyPath) -> Iterator[None]:
    """Keep other processes from a run, such as those that a killed sweep with --parallel has left behind.

    A bucket has no locks: there, processes of this machine alone are kept from it.
    """
    make_folder(folder)
    with (local_lock(folder) if is_remote(folder) else folder / "lock").open("w") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _failed(status: int) -> bool:
    """Whether a verb failed, by its exit status; one that was asked to stop stops the sweep, too."""
    from swjax.training.preemption import EXIT_PREEMPTED

    if status in (_INTERRUPTED, EXIT_PREEMPTED):
        raise _StoppedError(status)
    return status != 0


def _commit(folder: AnyPath, steps: int) -> str | None:
    """The commit that the run's last steps were made with, by its environment.jsonl."""
    from swjax.training.environment import recorded_starts

    commits = [start["commit"] for start in recorded_starts(folder) if start["step"] < steps]
    return commits[-1] if commits else None


def _job(args: argparse.Namespace, extra: Sequence[str], run: "SweepRun") -> list[str]:
    words = ["sweep", "--config", str(args.config), "--only", run.name]
    for name in ("output", "data", "limit"):
        value = getattr(args, name)
        words += [] if value is None else [f"--{name}", str(value)]
    return [*words, *extra]


def _run_apart(
    args: argparse.Namespace, extra: Sequence[str], left: "Sequence[SweepRun]", folder: AnyPath, out: Console
) -> list[str]:
    """Make runs in processes of their own, several at a time; each writes a log. Returns those that failed."""
    from swjax.evaluation.sweep import RUNS

    def make(run: "SweepRun") -> bool:
        log = folder / RUNS / run.name / "log.txt"
        make_folder(log.parent)
        command = [sys.executable, "-m", "swjax.commands.main", *_job(args, extra, run)]
        with writing_file(log) as on_disk, on_disk.open("ab") as file:
            if is_remote(log) and log.exists():
                file.write(log.read_bytes())
                file.flush()
            return subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode == 0

    failed = []
    with concurrent.futures.ThreadPoolExecutor(args.parallel) as pool:
        for run, went_well in zip(left, pool.map(make, left), strict=True):
            out.print(f"{run.name}: {'done' if went_well else 'failed, see its log.txt'}", soft_wrap=True)
            failed += [] if went_well else [run.name]
    return failed
