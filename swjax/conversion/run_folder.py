"""What a training run leaves on disk, and how a model is read back from it.

    RUN_DIR/
      config.json        every key of the run's configuration
      model.json         the model's configuration, in the form of Hugging Face's config.json
      tokenizer/         the tokenizer, as transformers saves it
      environment.jsonl  a line for each start: time, versions, git commit, devices, command line
      checkpoints/STEP/  parameters (path -> array), optimizer, data (the input iterator's place)
      metrics.jsonl      a line a step
      tensorboard/       the same for TensorBoard
      rejected/          examples that could not be used, and why

Training writes it; streaming, evaluation and export read it, and need nothing of training for that.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import DTypeLike

from swjax.conversion.errors import CheckpointError
from swjax.conversion.orbax_files import open_arrays
from swjax.conversion.parameters import Parameters, merge_parameters, split_parameters
from swjax.conversion.stored import StoredArray, place
from swjax.models.qwen2_5_vl.config import Qwen2_5_VLConfig
from swjax.models.qwen2_5_vl.model import Qwen2_5_VL, abstract_model

CONFIG = "config.json"
MODEL = "model.json"
TOKENIZER = "tokenizer"
CHECKPOINTS = "checkpoints"
PARAMETERS = "parameters"


@dataclass(frozen=True)
class Run:
    """A trained model with what is needed to use it.

    Attributes:
        model: the model.
        config: the run's configuration: every key of `swjax.training.config`, nested.
        tokenizer: folder of the tokenizer.
        step: optimizer steps that the model was trained for.
    """

    model: Qwen2_5_VL
    config: Mapping[str, Any]
    tokenizer: Path
    step: int


def load_run(run_dir: str | Path, step: int | None = None, *, dtype: DTypeLike = jnp.float32) -> Run:
    """Reads the model of a run's checkpoint onto the default device.

    Args:
        run_dir: the run folder.
        step: which checkpoint; the latest by default.
        dtype: dtype of the parameters.

    Raises:
        CheckpointError: the folder is no run folder, has no such checkpoint, or the checkpoint is half-written,
            damaged or of another model.
    """
    run_dir = Path(run_dir)
    config = read_run_config(run_dir)
    step = find_step(run_dir, step)
    structure, shapes = split_parameters(abstract_model(read_model_config(run_dir), param_dtype=dtype))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device) for path, leaf in shapes.items()}
    parameters = read_parameters(run_dir, step, shapes)
    return Run(merge_parameters(structure, parameters), config, run_dir / TOKENIZER, step)


def read_run_config(run_dir: str | Path) -> dict[str, Any]:
    """Reads the configuration that a run was started with.

    Raises:
        CheckpointError: the folder holds none, or it is damaged.
    """
    return _read_json(Path(run_dir), CONFIG)


def read_model_config(run_dir: str | Path) -> Qwen2_5_VLConfig:
    """Reads the model's configuration.

    Raises:
        CheckpointError: the folder holds none, or it is damaged.
    """
    try:
        return Qwen2_5_VLConfig.from_hf(_read_json(Path(run_dir), MODEL))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{Path(run_dir) / MODEL}: {error}") from error


def list_steps(run_dir: str | Path) -> list[int]:
    """The steps of all checkpoints that were written to their end, in order."""
    folder = Path(run_dir) / CHECKPOINTS
    if not folder.is_dir():
        return []
    return sorted(found.step for found in ocp.path.step.standard_name_format().find_all(folder))


def find_step(run_dir: str | Path, step: int | None = None) -> int:
    """The step given, if it has a checkpoint, or the latest that has.

    Raises:
        CheckpointError: there is none.
    """
    steps = list_steps(run_dir)
    if not steps:
        raise CheckpointError(f"{Path(run_dir) / CHECKPOINTS} holds no finished checkpoint")
    if step is not None and step not in steps:
        raise CheckpointError(
            f"{Path(run_dir) / CHECKPOINTS} holds no checkpoint of step {step}, but of {', '.join(map(str, steps))}"
        )
    return steps[-1] if step is None else step


def read_parameters(run_dir: str | Path, step: int, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Parameters:
    """Reads a checkpoint's parameters onto devices, one after another.

    Args:
        run_dir: the run folder.
        step: a step that has a checkpoint.
        shapes: path -> shape, dtype and sharding that the parameter is to have.

    Raises:
        CheckpointError: a parameter is missing, unexpected, of another shape, or damaged on disk.
    """
    stored = open_parameters(run_dir, step, shapes)
    return {path: place(stored[path], leaf.sharding, leaf.dtype) for path, leaf in shapes.items()}


def open_parameters(run_dir: str | Path, step: int, shapes: Mapping[str, Any]) -> dict[str, StoredArray]:
    """Opens a checkpoint's parameters and checks their names and shapes; reads none.

    Args:
        run_dir: the run folder.
        step: a step that has a checkpoint.
        shapes: path -> anything with the shape that the parameter is to have.

    Raises:
        CheckpointError: a parameter is missing, unexpected, of another shape, or damaged on disk.
    """
    folder = Path(run_dir).absolute() / CHECKPOINTS / str(step) / PARAMETERS
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing: the checkpoint is half-written; delete {folder.parent}")
    stored = open_arrays(folder)
    _check_shapes(folder, {path: array.shape for path, array in stored.items()}, shapes)
    return stored


def _check_shapes(folder: Path, stored: Mapping[str, tuple[int, ...]], expected: Mapping[str, Any]) -> None:
    faults = [f"lacks {path}" for path in expected if path not in stored]
    faults += [f"has unexpected {path}" for path in stored if path not in expected]
    faults += [
        f"has {path} with shape {stored[path]}, expected {tuple(leaf.shape)}"
        for path, leaf in expected.items()
        if path in stored and stored[path] != tuple(leaf.shape)
    ]
    if faults:
        more = f", and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise CheckpointError(f"{folder} does not fit the model: it {', '.join(faults[:4])}{more}")


def _read_json(run_dir: Path, name: str) -> dict[str, Any]:
    file = run_dir / name
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing; a folder that `swjax train` wrote holds one") from None
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
