"""The steps of a run: train, tell, validate, save, until the last step or until the run is asked to stop."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from rich.console import Console

from swjax.runs.folder import METRICS
from swjax.storage import as_path
from swjax.training.checkpoint import save_checkpoint
from swjax.training.compilations import count_compilations
from swjax.training.goodput import Goodput, last_step
from swjax.training.inputs import Inputs
from swjax.training.metrics import Write, log_lines, open_metrics, progress_bar
from swjax.training.origin import BEST_BY
from swjax.training.preemption import PreemptedError
from swjax.training.processes import is_first
from swjax.training.profiling import trace_steps
from swjax.training.program import Program
from swjax.training.sections import Config
from swjax.training.speed import StepClock
from swjax.training.step import Metrics, TrainState, put_batch
from swjax.training.watch import InputWatch, LossWatch, watchdog


class TooManyBadStepsError(RuntimeError):
    """More steps were not finite than the run allows."""


def run_steps(
    config: Config,
    program: Program,
    inputs: Inputs,
    state: TrainState,
    start: int,
    checkpoints: ocp.CheckpointManager,
    is_preempted: Callable[[int], bool],
    console: Console,
    clock: StepClock,
    features: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] | None = None,
) -> TrainState:
    """The loop. The host never waits for the step that it has just given to the devices, only for the one before.

    Args:
        config: the run's.
        program: its compiled parts.
        inputs: what it reads.
        state: after `start` steps; it is given away.
        start: steps taken.
        checkpoints: where the state is saved.
        is_preempted: step -> whether to stop after it.
        console: where to print.
        clock: times the steps.
        features: puts features that were made before in the place of a batch's pixels.

    Raises:
        PreemptedError, TooManyBadStepsError: as for `swjax.training.run.train`.
    """
    run_dir, bad_before = as_path(config.run_dir), int(state.bad_steps)
    goodput = Goodput(run_dir, start=start, lost_steps=max(0, last_step(run_dir / METRICS) - start))
    losses, waits = LossWatch(), InputWatch()
    seen: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    with (
        _tellers(config, start, console) as (write, show),
        watchdog(config.watchdog_minutes) as step_ended,
        trace_steps(run_dir, config.profile.steps) as (before_step, after_step),
        count_compilations("train_step") as compilations,
    ):

        def tell(taken: tuple[int, Metrics] | None) -> Mapping[str, float] | None:
            told = _tell(taken, write, show, clock)
            if told is not None:
                _warn(console, step, losses.see(told["loss"]))
            return told

        untold: tuple[int, Metrics] | None = None
        for step in range(start + 1, config.steps + 1):
            before_step(step)
            began = time.perf_counter()
            with goodput.spending("input"):
                rows = next(inputs.batches)
            waited = time.perf_counter() - began
            batch = _put(rows if features is None else features(rows), program, config, config.accumulation)
            compiled, seconds = compilations.count, compilations.seconds
            clock.begin(step, rows)
            # What moves between host and devices is moved by `put_batch` and `_tell`; compiling may move constants.
            shape = batch["token_ids"].shape, batch["pixel_values"].shape
            with (
                jax.transfer_guard("disallow" if shape in seen else "allow"),
                jax.profiler.StepTraceAnnotation("train", step_num=step),
            ):
                state, metrics = program.train_step(state, batch)
            seen.add(shape)
            if compilations.count > compiled:
                seconds = compilations.seconds - seconds
                goodput.spend("compile", seconds)
                console.print(f"step {step}: compiled for {_describe_rows(batch)} in {seconds:.1f} s")
            after_step(step, metrics)
            told = tell(untold)
            step_ended()
            _warn(console, step, waits.see(waited, time.perf_counter() - began))
            untold = step, metrics | {"compilations": jnp.float32(compilations.count)}

            is_last = step == config.steps
            saves, validates = (step % every == 0 or is_last for every in (config.checkpoint_every, config.eval_every))
            validation = None
            # The best checkpoints are chosen among those that were validated.
            if inputs.validation is not None and (validates or (saves and config.keep_best)):
                told, untold = tell(untold), None
                with goodput.spending("validation"):
                    validation = _validate(config, program, inputs, state, features)
                write(step, validation)
                console.print(f"step {step}: validation loss {validation[BEST_BY]:.4f}")
                clock.pause()
            stops = is_preempted(step) and not is_last
            if untold is not None and (saves or stops or is_last):  # a checkpoint follows its step's line
                told, untold = tell(untold), None
            bad_steps = bad_before if told is None else int(told["bad_steps"])
            is_bad = told is not None and told["bad_steps"] > config.max_bad_steps
            if saves or stops or is_bad:
                with goodput.spending("checkpoint"):
                    save_checkpoint(checkpoints, step, state, inputs.batches, parts=inputs.part[1], metrics=validation)
                goodput.record(step, bad_steps - bad_before)
            if is_bad:
                raise TooManyBadStepsError(_describe_bad(config, step))
            if stops:
                checkpoints.wait_until_finished()
                raise PreemptedError(f"asked to stop: step {step} is saved, the same command goes on from it")
            if is_last:
                console.print(goodput.describe(step, bad_steps - bad_before))
    return state


def _warn(console: Console, step: int, said: str) -> None:
    if said:
        console.print(f"[bold]step {step}[/]: {said}")


def _put(
    rows: Mapping[str, np.ndarray], program: Program, config: Config, accumulation: int | None = None
) -> dict[str, jax.Array]:
    return put_batch(
        rows,
        program.mesh,
        max_labels=config.data.max_labels,
        accumulation=accumulation,
        stripe=program.stripe,
        fields=program.fields,
    )


def _describe_rows(batch: Mapping[str, jax.Array]) -> str:
    accumulation, rows, tokens = batch["token_ids"].shape
    return f"{accumulation} x {rows} rows of {tokens} tokens and {batch['pixel_values'].shape[2]} patches"


def _describe_bad(config: Config, step: int) -> str:
    return (
        f"more than config.max_bad_steps = {config.max_bad_steps} steps had a loss or gradient that was not finite, by "
        f"step {step}. None of them changed the model, and the checkpoint of this step is kept. Look at the steps "
        "before the first in metrics.jsonl: if the gradient grew, start again with a lower learning rate; to go on "
        "from here, raise config.max_bad_steps"
    )


@contextlib.contextmanager
def _tellers(config: Config, start: int, console: Console) -> Iterator[tuple[Write, Write]]:
    """What takes the metrics of a step: one that writes them down and one that shows them, in the first process."""
    if not is_first():
        yield (lambda step, metrics: None), (lambda step, metrics: None)
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
        yield write, show


def _tell(taken: tuple[int, Metrics] | None, write: Write, show: Write, clock: StepClock) -> Mapping[str, float] | None:
    """Fetches the metrics of a step, which waits until it is done, and passes them on."""
    if taken is None:
        return None
    step, metrics = taken
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    values |= clock.read(step, values["tokens"])
    write(step, values)
    show(step, values)
    return values


def _validate(
    config: Config,
    program: Program,
    inputs: Inputs,
    state: TrainState,
    features: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] | None,
) -> dict[str, float]:
    """What the objective says of all validation examples: means by its counts, `validation_loss` (nats) among them."""
    assert inputs.validation is not None
    batches = inputs.validation if features is None else map(features, inputs.validation)
    found = jax.device_get([program.eval_step(state, _put(rows, program, config)) for rows in batches])
    means = {}
    for name in found[0][0]:
        total, count = np.sum([(sums[name], counts[name]) for sums, counts in found], axis=0)
        means[f"validation_{name}"] = float(total / count)
    return means
