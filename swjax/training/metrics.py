"""What a run reports while it trains: metrics.jsonl, TensorBoard, Weights & Biases, and a bar or lines of a log."""

import contextlib
import importlib
import json
import math
import uuid
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from swjax.atomic import write_text
from swjax.data.json_lines import cut_half_line, readable_lines
from swjax.plain import JsonView
from swjax.runs.folder import METRICS
from swjax.storage import AnyPath, is_remote, open_log
from swjax.training.bucket_board import board_folder
from swjax.training.config import ConfigError
from swjax.training.speed import describe_step

TENSORBOARD = "tensorboard"
WANDB_ID = "wandb_id.txt"

Write = Callable[[int, Mapping[str, float]], None]


@contextlib.contextmanager
def open_metrics(
    run_dir: AnyPath,
    *,
    after_step: int,
    wandb: JsonView | None = None,
    config: JsonView | None = None,
) -> Iterator[Write]:
    """Opens the run folder's metrics for steps that follow `after_step`; one process of a run does.

    What a killed run wrote of later steps is dropped, as those steps are taken again; so are lines that a crash has
    spoiled.

    Args:
        run_dir: the run folder.
        after_step: steps taken.
        wandb: the group `wandb` of the configuration; without a project nothing is reported there.
        config: the run's configuration, for that report.

    Raises:
        ConfigError: Weights & Biases is not installed.

    Yields:
        A function that writes the metrics of a step.
    """
    file = run_dir / METRICS
    cut_half_line(file)
    kept = [line for line in readable_lines(file, ["step"]) if line["step"] <= after_step]
    write_text(file, "".join(json.dumps(line) + "\n" for line in kept))
    with (
        open_log(file) as lines,
        SummaryWriter(board_folder(run_dir / TENSORBOARD), purge_step=after_step + 1, flush_secs=10) as board,
        _open_wandb(run_dir, wandb or {}, config or {}) as report,
    ):

        def write(step: int, metrics: Mapping[str, float]) -> None:
            # JSON has no NaN.
            finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            lines.write(json.dumps({"step": step, **finite}) + "\n")
            for name, value in metrics.items():
                board.add_scalar(name, value, step)
            report(step, metrics)

        yield write


@contextlib.contextmanager
def log_lines(console: Console, *, total: int, every: int) -> Iterator[Write]:
    """Prints a line every so many steps, the first and the last among them, where there is no terminal for a bar.

    Args:
        console: where to print.
        total: steps of the run.
        every: steps between lines.

    Yields:
        A function that takes the metrics of a step, its speed among them.
    """
    first = True

    def show(step: int, metrics: Mapping[str, float]) -> None:
        nonlocal first
        if first or step % every == 0 or step == total:
            console.print(describe_step(step, total, metrics), soft_wrap=True)
        first = False

    yield show


@contextlib.contextmanager
def progress_bar(console: Console, *, completed: int, total: int) -> Iterator[Write]:
    """Shows steps done, loss, tokens a second (smoothed) and the time left.

    Args:
        console: where to show it.
        completed: steps taken before.
        total: steps of the run.

    Yields:
        A function that takes the metrics of a step.
    """
    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("{task.fields[rate]} tokens/s"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
    rate = 0.0
    with bar:
        task = bar.add_task("training", completed=completed, total=total, loss="...", rate="...")

        def show(step: int, metrics: Mapping[str, float]) -> None:
            nonlocal rate
            current = metrics["tokens_per_second"]
            rate = 0.9 * rate + 0.1 * current if rate else current
            bar.update(task, completed=step, loss=f"{metrics['loss']:.4f}", rate=f"{rate:,.0f}")

        yield show


def check_wandb(project: str) -> None:
    """Looks whether Weights & Biases can be reported to, before anything is loaded or compiled.

    Raises:
        ConfigError: a project is given, and the package is not installed.
    """
    if not project:
        return
    try:
        importlib.import_module("wandb")
    except ImportError:
        raise ConfigError(
            "config.wandb.project is set and wandb is not installed; pip install wandb, or set it to ''"
        ) from None


@contextlib.contextmanager
def _open_wandb(run_dir: AnyPath, settings: JsonView, config: JsonView) -> Iterator[Write]:
    """Reports to Weights & Biases, under one id for all starts of the run; without a project, nowhere."""
    if not settings.get("project"):
        yield lambda step, metrics: None
        return
    check_wandb(settings["project"])
    wandb = importlib.import_module("wandb")
    file = run_dir / WANDB_ID
    if not file.exists():
        file.write_text(uuid.uuid4().hex[:12])
    folder = None if is_remote(run_dir) else str(run_dir)  # None: its own, as it writes to disk alone
    run = wandb.init(
        project=settings["project"],
        entity=settings.get("entity") or None,
        name=settings.get("name") or run_dir.name,
        tags=list(settings.get("tags", ())),
        id=file.read_text(),
        resume="allow",
        config=dict(config),
        dir=folder,
    )
    try:
        yield lambda step, metrics: run.log(dict(metrics), step=step)
    finally:
        run.finish()
