"""A training run as one story: read `train` from top to bottom."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import jax
from rich.console import Console

from swjax.atomic import write_json
from swjax.data.decisions import DECISION_TEXTS
from swjax.data.tokenizer import TEMPLATE_FILE, find_chat_template, load_tokenizer
from swjax.hub.tokenizer_files import copy_tokenizer, write_added_tokens
from swjax.mesh import row_share
from swjax.models.config import ModelConfig
from swjax.runs.folder import CONFIG, MODEL, TOKENIZER, list_steps, read_model_config, read_run_config
from swjax.runs.streaming_model import StoredModel
from swjax.storage import AnyPath, absolute, as_path, check_access, check_writable, make_folder, sync_logs
from swjax.streaming.tokens import Tokenizer
from swjax.training.checkpoint import open_checkpoints, restore_checkpoint
from swjax.training.config import ConfigError, Unread, changed_keys, check_config
from swjax.training.environment import changed_data, fingerprint_data, record_start
from swjax.training.features import open_feature_cache
from swjax.training.inputs import open_inputs, open_training_data, read_pipeline_config, report_rejected
from swjax.training.length import changed_length, describe_length, steps_of
from swjax.training.loop import run_steps
from swjax.training.metrics import check_wandb
from swjax.training.origin import open_origin
from swjax.training.overview import describe_parameters, parameter_lines
from swjax.training.preemption import watch_preemption
from swjax.training.processes import check_shared, is_first, meet
from swjax.training.program import describe_attention, fit_rows, make_program, open_mesh
from swjax.training.sections import Config
from swjax.training.speed import start_clock
from swjax.training.start import choose_model, choose_tokenizer, make_state
from swjax.training.step import TrainState


def train(config: Config | Unread, *, console: Console | None = None) -> TrainState:
    """Trains a model as configured; resumes where it stopped if the run folder holds a checkpoint.

    A run is deterministic on the same machine: stopped at any moment and started again, it ends with the same
    parameters, bit for bit. Where several processes train as one (`swjax.training.processes`), each calls this.

    Args:
        config: every key of `swjax.training.sections`.
        console: where to print.

    Returns:
        The state after the last step; the run folder (`swjax.runs.folder`) holds the same.

    Raises:
        ConfigError: the configuration cannot be run, or the run folder holds a run with another one.
        CheckpointError: a checkpoint to start from or to resume from cannot be used.
        ManifestError, TooManyRejectedError: the data cannot be used.
        PreemptedError: the run was asked to stop (SIGTERM), and has saved its state.
        TooManyBadStepsError: more steps than `max_bad_steps` were not finite; the last checkpoint has the state
            before them.
    """
    console = (console or Console()) if is_first() else Console(quiet=True)
    config = check_config(config)
    check_wandb(config.wandb.project)
    run_dir = as_path(config.run_dir)
    check_writable(run_dir)
    check_access(run_dir)
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", str(absolute(as_path(config.compilation_cache))))
    config = fit_rows(config)
    start = max(list_steps(run_dir), default=0)
    check_shared(start, "latest checkpoint")
    origin = None
    if start:
        _check_same_run(run_dir, config)
        model_config = read_model_config(run_dir)
        tokenizer = load_tokenizer(run_dir / TOKENIZER, model_config.chat)
    else:
        origin = open_origin(config.init_from, config.init_checkpoint)
        tokenizer, model_config = _choose(config, origin)
    # What does not fit is refused before the data is read.
    mesh, _ = open_mesh(config.mesh, config.data, config.batch_size, model_config.geometry.token_patches)
    part = row_share(mesh)
    rows = config.batch_size * config.accumulation
    pipeline_config = read_pipeline_config(config, model_config, rows=rows // part[1])
    sources = open_training_data(config.data)
    recorded = read_run_config(run_dir) if start else None
    if config.epochs:
        steps = steps_of(config.epochs, sources, pipeline_config, tokenizer, rows=rows, recorded=recorded)
        config = replace(config, steps=steps)
    lengthened = changed_length(recorded["steps"], config.steps) if recorded else None
    program = make_program(config, model_config)
    inputs = open_inputs(
        run_dir, config.data, pipeline_config, tokenizer, part, sources, accumulation=config.accumulation
    )

    if is_first():
        if not start:
            _write_run_folder(run_dir, config, model_config, tokenizer)
        elif lengthened:
            length = {"steps": config.steps, "epochs": config.epochs}
            write_json(run_dir / CONFIG, read_run_config(run_dir) | length)
        _note_data(run_dir, f"{config.data.train},{config.data.validation}", start, console)
    meet("run folder written")
    with (
        watch_preemption() as is_preempted,
        open_checkpoints(run_dir, keep=config.keep, keep_best=config.keep_best) as checkpoints,
    ):
        # Where it starts: 1. the run's latest checkpoint, else 2. a Hugging Face checkpoint, else 3. scratch.
        if start:
            console.print(f"{run_dir}: resuming from step {start} of {config.steps}")
            if lengthened:
                console.print(lengthened)
            state = restore_checkpoint(checkpoints, start, program.shapes, inputs.batches, part=part)
        else:
            console.print(f"{run_dir}: starting from {config.init_from or 'scratch'}")
            state = make_state(model_config, config, program.optimizer, program.shapes, origin)
        console.print(describe_length(config, sources))
        for line in describe_parameters(state):
            console.print(line, markup=False, soft_wrap=True)
        console.print(f"{program.mesh.size} device(s)")
        console.print(describe_attention(config.attention, config.data, model_config, program.mesh, dtype=config.dtype))
        keeps_features = bool(config.data.feature_cache_mb)
        clock = start_clock(
            config.steps, model_config, program.shapes, part[1], dtype=config.dtype, keeps_features=keeps_features
        )
        features = open_feature_cache(config.data.feature_cache_mb, config.dtype, model_config, state)
        state = run_steps(config, program, inputs, state, start, checkpoints, is_preempted, console, clock, features)
    report_rejected(inputs, console)
    sync_logs()
    return state


def show_parameters(config: Config) -> Iterator[str]:
    """Lines on all parameters that a run would have; no weights are read.

    Args:
        config: the run's.

    Raises:
        ConfigError, CheckpointError: as for `train`.
    """
    _, model_config = _choose(config, open_origin(config.init_from, config.init_checkpoint))
    shapes = make_program(fit_rows(config), model_config).shapes
    yield from parameter_lines(shapes)
    yield from describe_parameters(shapes)


def _choose(config: Config, origin: StoredModel | None) -> tuple[Tokenizer, ModelConfig]:
    decides = config.speaking == "decide"
    tokenizer = choose_tokenizer(config.tokenizer, origin, config.model.preset, decides=decides)
    return tokenizer, choose_model(config.model, origin, tokenizer, init_from=config.init_from)


def _check_same_run(run_dir: AnyPath, config: Config) -> None:
    changes = changed_keys(read_run_config(run_dir), config)
    if changes:
        listed = "\n  ".join(changes)
        raise ConfigError(
            f"{run_dir} holds a run with another configuration:\n  {listed}\n"
            "set these back to resume it, or choose another config.run_dir"
        )


def _note_data(run_dir: AnyPath, names: str, start: int, console: Console) -> None:
    """Records the start with what its data sets are made of, and says which of them have changed since the last one."""
    data = fingerprint_data(names)
    for name in changed_data(run_dir, data) if start else ():
        console.print(f"[bold]{name} is not what it was at the last start[/]: its examples come in another order")
    record_start(run_dir, step=start, data=data)


def _write_run_folder(run_dir: AnyPath, config: Config, model_config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Writes what does not change while the run goes on."""
    make_folder(run_dir)
    source = Path(tokenizer.name_or_path)
    copy_tokenizer(source, run_dir / TOKENIZER)
    if config.speaking == "decide":
        write_added_tokens(run_dir / TOKENIZER, tokenizer, DECISION_TEXTS)
    if find_chat_template(source) is None:
        (run_dir / TOKENIZER / TEMPLATE_FILE).write_text(tokenizer.chat_template, encoding="utf-8")
    for name, content in ((CONFIG, asdict(config)), (MODEL, model_config.to_hf("float32"))):
        write_json(run_dir / name, content)
