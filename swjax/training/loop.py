"""The steps of a run: train, report, validate, save, until the last step or until the run is asked to stop."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

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
from swjax.training.objectives import Batch
from swjax.training.origin import BEST_BY
from swjax.training.preemption import PreemptedError
from swjax.training.profiling import trace_steps
from swjax.training.program import Program
from swjax.training.reporting import open_reporter
from swjax.training.sections import Config
from swjax.training.speed import StepClock
from swjax.training.step import TrainState, put_batch
from swjax.training.watch import InputWatch, watchdog

Rows: TypeAlias = Mapping[str, np.ndarray]
"""What the host has of a batch."""

Shapes: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Of a batch's tokens and patches."""


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
    features: Callable[[Rows], Rows] | None = None,
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
    waits, seen = InputWatch(), set[Shapes]()
    put = functools.partial(
        put_batch,
        mesh=program.mesh,
        max_labels=config.data.max_labels,
        stripe=program.stripe,
        fields=program.fields,
    )
    with (
        open_reporter(config, start, clock, console) as reporter,
        watchdog(config.watchdog_minutes) as step_ended,
        trace_steps(run_dir, config.profile.steps) as (before_step, after_step),
        count_compilations("train_step") as compilations,
    ):
        for step in range(start + 1, config.steps + 1):
            before_step(step)
            began = time.perf_counter()
            with goodput.spending("input"):
                rows = next(inputs.batches)
            waited = time.perf_counter() - began
            rows_or_features = rows if features is None else features(rows)
            batch = put(rows_or_features, accumulation=config.accumulation)
            clock.begin(step, rows)
            compiled = compilations.seconds
            with _watching(step, batch, seen):
                state, metrics = program.train_step(state, batch)
            if seconds := compilations.seconds - compiled:
                goodput.spend("compile", seconds)
                console.print(f"step {step}: compiled for {_describe_rows(batch)} in {seconds:.1f} s")
            after_step(step, metrics)
            reporter.report()
            step_ended()
            reporter.warn(step, waits.see(waited, time.perf_counter() - began))
            reporter.take(step, metrics | {"compilations": jnp.float32(compilations.count)})

            is_last = step == config.steps
            saves, validates = (step % every == 0 or is_last for every in (config.checkpoint_every, config.eval_every))
            validation = None
            # The best checkpoints are chosen among those that were validated.
            if inputs.validation is not None and (validates or (saves and config.keep_best)):
                reporter.report()
                with goodput.spending("validation"):
                    validation = _validate(put, program, inputs.validation, state, features)
                reporter.validated(step, validation, validation[BEST_BY])
            stops = is_preempted(step) and not is_last
            if saves or stops:  # a checkpoint follows its step's line
                reporter.report()
            bad_steps = bad_before if reporter.bad_steps is None else reporter.bad_steps
            is_bad = reporter.bad_steps is not None and bad_steps > config.max_bad_steps
            if saves or stops or is_bad:
                with goodput.spending("checkpoint"):
                    save_checkpoint(checkpoints, step, state, inputs.batches, parts=inputs.part[1], metrics=validation)
                goodput.record(step, bad_steps - bad_before)
            if is_bad:
                raise TooManyBadStepsError(_describe_bad(config.max_bad_steps, step))
            if stops:
                checkpoints.wait_until_finished()
                raise PreemptedError(f"asked to stop: step {step} is saved, and the same command resumes from it")
            if is_last:
                console.print(goodput.describe(step, bad_steps - bad_before))
    return state


@contextlib.contextmanager
def _watching(step: int, batch: Batch, seen: set[Shapes]) -> Iterator[None]:
    """Refuses transfers that a step makes by itself, and marks the step for the profiler.

    What moves between host and devices is moved by `put_batch` and the reporter; compiling may move constants.
    """
    shapes = batch["token_ids"].shape, batch["pixel_values"].shape
    with (
        jax.transfer_guard("disallow" if shapes in seen else "allow"),
        jax.profiler.StepTraceAnnotation("train", step_num=step),
    ):
        yield
    seen.add(shapes)


def _describe_rows(batch: Mapping[str, jax.Array]) -> str:
    accumulation, rows, tokens = batch["token_ids"].shape
    return f"{accumulation} x {rows} rows of {tokens} tokens and {batch['pixel_values'].shape[2]} patches"


def _describe_bad(most: int, step: int) -> str:
    return (
        f"more than config.max_bad_steps = {most} steps had a loss or gradient that was not finite, by "
        f"step {step}. None of them changed the model, and the checkpoint of this step is kept. Look at the steps "
        "before the first in metrics.jsonl: if the gradient grew, start again with a lower learning rate; to resume "
        "from here, raise config.max_bad_steps"
    )


def _validate(
    put: Callable[[Rows], Batch],
    program: Program,
    rows: Iterable[Rows],
    state: TrainState,
    features: Callable[[Rows], Rows] | None,
) -> dict[str, float]:
    """What the objective says of all validation examples: means by its counts, `validation_loss` (nats) among them."""
    batches = rows if features is None else map(features, rows)
    found = jax.device_get([program.eval_step(state, put(batch)) for batch in batches])
    means = {}
    for name in found[0][0]:
        total, count = np.sum([(sums[name], counts[name]) for sums, counts in found], axis=0)
        means[f"validation_{name}"] = float(total / count)
    return means
