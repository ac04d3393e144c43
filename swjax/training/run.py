"""A training run as one story: read `train` from top to bottom."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from rich.console import Console

from swjax.conversion.run_folder import CONFIG, MODEL, TOKENIZER, list_steps, read_model_config, read_run_config
from swjax.data.tokenizer import load_tokenizer
from swjax.models.qwen2_5_vl import Qwen2_5_VLConfig
from swjax.training.checkpoint import open_checkpoints, restore_checkpoint, save_checkpoint
from swjax.training.compilations import count_compilations
from swjax.training.config import ConfigError, changed_keys, check_config
from swjax.training.environment import record_start
from swjax.training.inputs import Inputs, open_inputs, report_rejected
from swjax.training.metrics import Write, open_metrics, progress_bar
from swjax.training.program import Program, describe_attention, make_program
from swjax.training.start import choose_model, choose_tokenizer, make_state
from swjax.training.step import Metrics, TrainState, put_batch


def train(config: ConfigDict, *, console: Console | None = None) -> TrainState:
    """Trains a model as configured; goes on where it stopped if the run folder holds a checkpoint.

    A run is deterministic on the same machine: stopped at any moment and started again, it ends with the same
    parameters, bit for bit.

    Args:
        config: every key of `swjax.training.config`.
        console: where to print.

    Returns:
        The state after the last step; the run folder (`swjax.conversion.run_folder`) holds the same.

    Raises:
        ConfigError: the configuration cannot be run, or the run folder holds a run with another one.
        CheckpointError: a checkpoint to start from or go on from cannot be used.
        ManifestError, TooManyRejectedError: the data cannot be used.
    """
    console = console or Console()
    check_config(config)
    run_dir = Path(config.run_dir)
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", str(Path(config.compilation_cache).absolute()))
    start = max(list_steps(run_dir), default=0)
    if start:
        _check_same_run(run_dir, config)

    tokenizer = load_tokenizer(run_dir / TOKENIZER) if start else choose_tokenizer(config)
    model_config = read_model_config(run_dir) if start else choose_model(config, tokenizer)
    program = make_program(config, model_config)
    inputs = open_inputs(config, tokenizer, program.mesh)

    if not start:
        _write_run_folder(run_dir, config, model_config, tokenizer)
    record_start(run_dir, step=start)
    with open_checkpoints(run_dir, keep=config.keep) as checkpoints:
        # Where it starts: 1. the run's latest checkpoint, else 2. a Hugging Face checkpoint, else 3. scratch.
        if start:
            console.print(f"{run_dir}: going on from step {start} of {config.steps}")
            state = restore_checkpoint(checkpoints, start, program.shapes, inputs.batches)
        else:
            console.print(f"{run_dir}: starting from {config.init_from or 'scratch'}")
            state = make_state(model_config, config, program.optimizer, program.shapes)
        trained, kept = (sum(leaf.size for leaf in part.values()) for part in (state.trainable, state.frozen))
        console.print(f"{trained + kept:,} parameters, {trained:,} of them train; {program.mesh.size} device(s)")
        console.print(describe_attention(config, program.mesh))
        state = _run_steps(config, program, inputs, state, start, checkpoints, console)
    report_rejected(inputs, console)
    return state


def _run_steps(
    config: ConfigDict,
    program: Program,
    inputs: Inputs,
    state: TrainState,
    start: int,
    checkpoints: ocp.CheckpointManager,
    console: Console,
) -> TrainState:
    """The loop. The host never waits for the step that it has just given to the devices, only for the one before."""
    with (
        open_metrics(Path(config.run_dir), after_step=start) as write,
        progress_bar(console, completed=start, total=config.steps) as show,
        count_compilations("train_step") as compilations,
    ):
        before: tuple[int, Metrics] | None = None
        for step in range(start + 1, config.steps + 1):
            rows = next(inputs.batches)
            batch = _put(rows, program, config, accumulation=config.accumulation)
            compiled, seconds = compilations.count, compilations.seconds
            state, metrics = program.train_step(state, batch)
            if compilations.count > compiled:
                seconds = compilations.seconds - seconds
                console.print(f"step {step}: compiled for {_describe_rows(batch)} in {seconds:.1f} s")
            _tell(before, write, show)
            before = step, metrics | {"compilations": jnp.float32(compilations.count)}
            if inputs.validation is not None and _is_due(step, config.eval_every, config.steps):
                _tell(before, write, show)
                before = None
                loss = _validation_loss(config, program, inputs, state)
                write(step, {"validation_loss": loss})
                console.print(f"step {step}: validation loss {loss:.4f}")
            if _is_due(step, config.checkpoint_every, config.steps):
                save_checkpoint(checkpoints, step, state, inputs.batches)
        _tell(before, write, show)
    return state


def _put(
    rows: Mapping[str, np.ndarray], program: Program, config: ConfigDict, *, accumulation: int | None = None
) -> dict[str, jax.Array]:
    max_labels = config.data.max_labels
    return put_batch(rows, program.mesh, max_labels=max_labels, accumulation=accumulation, stripe=program.stripe)


def _describe_rows(batch: Mapping[str, jax.Array]) -> str:
    accumulation, rows, tokens = batch["token_ids"].shape
    return f"{accumulation} x {rows} rows of {tokens} tokens and {batch['pixel_values'].shape[2]} patches"


def _is_due(step: int, every: int, last: int) -> bool:
    return step % every == 0 or step == last


def _tell(taken: tuple[int, Metrics] | None, write: Write, show: Write) -> None:
    """Fetches the metrics of a step, which waits until it is done, and passes them on."""
    if taken is None:
        return
    step, metrics = taken
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    write(step, values)
    show(step, values)


def _validation_loss(config: ConfigDict, program: Program, inputs: Inputs, state: TrainState) -> float:
    """Mean loss by token over all validation examples, in nats."""
    assert inputs.validation is not None
    sums = [program.eval_step(state, _put(rows, program, config)) for rows in inputs.validation]
    loss, labels = np.sum(jax.device_get(sums), axis=0)
    return float(loss / labels)


def _check_same_run(run_dir: Path, config: ConfigDict) -> None:
    changes = changed_keys(read_run_config(run_dir), config)
    if changes:
        listed = "\n  ".join(changes)
        raise ConfigError(
            f"{run_dir} holds a run with another configuration:\n  {listed}\n"
            "set these back to go on with it, or choose another config.run_dir"
        )


def _write_run_folder(run_dir: Path, config: ConfigDict, model_config: Qwen2_5_VLConfig, tokenizer: Any) -> None:
    """Writes what does not change while the run goes on."""
    run_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(run_dir / TOKENIZER)
    for name, content in ((CONFIG, config.to_dict()), (MODEL, model_config.to_hf("float32"))):
        (run_dir / name).write_text(json.dumps(content, indent=2) + "\n")
