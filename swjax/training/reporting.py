"""What a run says of its steps, one step late: so the host never waits for the step that it has just given away."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
from rich.console import Console

from swjax.storage import as_path
from swjax.training.metrics import Write, log_lines, open_metrics, progress_bar
from swjax.training.processes import is_first
from swjax.training.sections import Config
from swjax.training.speed import StepClock
from swjax.training.step import Metrics
from swjax.training.watch import LossWatch


class Reporter:
    """Passes the metrics of a run on, step by step.

    Attributes:
        bad_steps: those of the run so far, as the last step that was reported counts them; None before any.
    """

    bad_steps: int | None = None

    def __init__(self, write: Write, show: Write, clock: StepClock, console: Console) -> None:
        """Starts with no steps.

        Args:
            write: writes the metrics of a step down.
            show: shows them.
            clock: times the steps.
            console: where warnings go.
        """
        self._write, self._show, self._clock, self._console = write, show, clock, console
        self._losses = LossWatch()
        self._taken: tuple[int, Metrics] | None = None

    def take(self, step: int, metrics: Metrics) -> None:
        """Holds the metrics of a step that the devices are at."""
        self._taken = step, metrics

    def report(self) -> None:
        """Fetches the metrics of the step that is held, if any, which waits until it is done, and passes them on."""
        if self._taken is None:
            return
        (step, metrics), self._taken = self._taken, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        values |= self._clock.read(step, values["tokens"])
        self._write(step, values)
        self._show(step, values)
        self.warn(step, self._losses.see(values["loss"]))
        self.bad_steps = int(values["bad_steps"])

    def validated(self, step: int, validation: dict[str, float], loss: float) -> None:
        """Passes on what a validation has found, and does not count its time as a step's.

        Args:
            step: after which it was done.
            validation: what was measured, by name.
            loss: the one of these that is printed.
        """
        self._write(step, validation)
        self._console.print(f"step {step}: validation loss {loss:.4f}")
        self._clock.pause()

    def warn(self, step: int, said: str) -> None:
        """Prints what there is to say of a step; '' is nothing."""
        if said:
            self._console.print(f"[bold]step {step}[/]: {said}")


@contextlib.contextmanager
def open_reporter(config: Config, start: int, clock: StepClock, console: Console) -> Iterator[Reporter]:
    """A reporter for a run; one that writes nothing and shows nothing in any but the first process.

    Args:
        config: the run's, all of which Weights & Biases is given.
        start: steps taken before.
        clock: times the steps.
        console: where to print.
    """
    if not is_first():
        yield Reporter(lambda step, metrics: None, lambda step, metrics: None, clock, console)
        return
    with (
        open_metrics(
            as_path(config.run_dir),
            after_step=start,
            wandb=dataclasses.asdict(config.wandb),
            config=dataclasses.asdict(config),
        ) as write,
        progress_bar(console, completed=start, total=config.steps)
        if console.is_terminal
        else log_lines(console, total=config.steps, every=config.log_every) as show,
    ):
        yield Reporter(write, show, clock, console)
