"""What a training run leaves on disk, and how a model is read back from it.

    RUN_DIR/
      config.json        every key of the run's configuration
      model.json         the model's configuration, in the form of Hugging Face's config.json
      tokenizer/         the files of the tokenizer, as they were given
      environment.jsonl  a line for each start: time, versions, git commit, devices, command line
      checkpoints/STEP/  parameters (path -> array), ema (the same, averaged, if the run averages), optimizer, data
                         (the input iterator's place)
      metrics.jsonl      a line a step
      goodput.jsonl      where the time went, a line a checkpoint
      tensorboard/       the same for TensorBoard
      rejected/          examples that could not be used, and why

Training writes it; streaming, evaluation and export read it, and need nothing of training for that.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import DTypeLike

from swjax.hub.errors import CheckpointError
from swjax.hub.reader import Shardings, choose_shardings, parse_config, read_json
from swjax.models.adapters import adapter_shapes, choose_targets, effective_alpha, in_int8, merge_stored
from swjax.models.config import ModelConfig
from swjax.models.family import abstract_model
from swjax.models.model import VideoLanguageModel
from swjax.models.parameters import Leaves, Parameters, merge_parameters, split_parameters
from swjax.models.stored import StoredArray, place
from swjax.plain import Json, JsonView
from swjax.runs.orbax_files import MARKER, is_staged, open_arrays
from swjax.storage import AnyPath, absolute, as_path, retried

CONFIG = "config.json"
MODEL = "model.json"
TOKENIZER = "tokenizer"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
PARAMETERS = "parameters"
EMA = "ema"

_HOLDER = "a folder that `swjax train` wrote"


@dataclass(frozen=True)
class Run:
    """A trained model with what is needed to use it.

    Attributes:
        model: the model.
        config: the run's configuration: every key of `swjax.training.config`, nested.
        tokenizer: folder of the tokenizer.
        step: optimizer steps that the model was trained for.
    """

    model: VideoLanguageModel
    config: JsonView
    tokenizer: AnyPath
    step: int


@dataclass(frozen=True)
class Lora:
    """The adapters of a run.

    Attributes:
        rank: of each.
        alpha: numerator of their scale, as configured.
        targets: patterns of the weights that they adapt.
        rslora: whether the scale is over the square root of the rank.
        additional: patterns of the parameters that train beside them.
        base_dtype: int8 where the weights that they adapt are held so, or "".
        dropout: share of their inputs that training drops.
        dora: whether they have magnitudes.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    rslora: bool = False
    additional: tuple[str, ...] = ()
    base_dtype: str = ""
    dropout: float = 0.0
    dora: bool = False

    @property
    def effective_alpha(self) -> float:
        """The numerator of the scale over the rank."""
        return effective_alpha(self.alpha, self.rank, rslora=self.rslora)


def load_run(
    run_dir: str | AnyPath,
    step: int | None = None,
    *,
    dtype: DTypeLike = jnp.float32,
    shardings: Shardings | None = None,
) -> Run:
    """Reads the model of a run's checkpoint: averaged, adapters merged (`open_run_model`).

    Args:
        run_dir: the run folder.
        step: which checkpoint; the latest by default.
        dtype: dtype of the parameters.
        shardings: where they go, as for `swjax.hub.load_hf`; None puts them all on the first device.

    Raises:
        CheckpointError: the folder is no run folder, has no such checkpoint, or the checkpoint is half-written,
            damaged or of another model.
    """
    run_dir = as_path(run_dir)
    config = read_run_config(run_dir)
    step = find_step(run_dir, step)
    structure, shapes = split_parameters(abstract_model(read_model_config(run_dir), param_dtype=dtype))
    where = choose_shardings(shardings, shapes)
    parameters = {path: place(array, where[path], dtype) for path, array in open_run_model(run_dir, step).items()}
    return Run(merge_parameters(structure, parameters), config, run_dir / TOKENIZER, step)


def read_run_config(run_dir: str | AnyPath) -> Json:
    """Reads the configuration that a run was started with.

    Raises:
        CheckpointError: the folder holds none, or it is damaged.
    """
    return read_json(as_path(run_dir) / CONFIG, holder=_HOLDER)


def read_model_config(run_dir: str | AnyPath) -> ModelConfig:
    """Reads the model's configuration.

    Raises:
        CheckpointError: the folder holds none, or it is damaged.
    """
    return parse_config(as_path(run_dir) / MODEL, holder=_HOLDER)


def read_lora(config: JsonView) -> Lora | None:
    """What a run's configuration says of adapters; None where it has none.

    Args:
        config: from `read_run_config`.
    """
    found = config.get("lora", {})
    if not found.get("rank", 0):
        return None
    return Lora(
        found["rank"],
        found["alpha"],
        tuple(found["targets"]),
        found.get("rslora", False),
        tuple(found.get("additional", ())),
        found.get("base_dtype", ""),
        found.get("dropout", 0.0),
        found.get("dora", False),
    )


def list_steps(run_dir: str | AnyPath) -> list[int]:
    """The steps of all checkpoints that were written to their end, in order."""
    folder = as_path(run_dir) / CHECKPOINTS
    if not folder.is_dir():
        return []
    if is_staged(folder):
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and (path / MARKER).exists())
    found = retried(lambda: list(ocp.path.step.standard_name_format().find_all(folder)), f"listing {folder}")
    return sorted(one.step for one in found)


def find_step(run_dir: str | AnyPath, step: int | None = None) -> int:
    """The step given, if it has a checkpoint, or the latest that has.

    Raises:
        CheckpointError: there is none.
    """
    steps = list_steps(run_dir)
    if not steps:
        raise CheckpointError(f"{as_path(run_dir) / CHECKPOINTS} holds no finished checkpoint")
    if step is not None and step not in steps:
        raise CheckpointError(
            f"{as_path(run_dir) / CHECKPOINTS} holds no checkpoint of step {step}, but of {', '.join(map(str, steps))}"
        )
    return steps[-1] if step is None else step


def open_run_model(run_dir: str | AnyPath, step: int) -> dict[str, StoredArray]:
    """Opens the parameters of the model that a checkpoint stands for.

    They are averages where the run keeps them (config.optimizer.ema), and weights have their adapters merged.

    Args:
        run_dir: the run folder.
        step: a step that has a checkpoint.

    Raises:
        CheckpointError: as for `open_parameters`.
    """
    lora = read_lora(read_run_config(run_dir))
    stored = open_checkpoint(run_dir, step)
    return stored if lora is None else merge_stored(stored, alpha=lora.effective_alpha)


def open_checkpoint(run_dir: str | AnyPath, step: int) -> dict[str, StoredArray]:
    """Opens a checkpoint's parameters, averages where the run has them, adapters apart from their weights.

    Raises:
        CheckpointError: as for `open_parameters`.
    """
    config = read_run_config(run_dir)
    shapes: Parameters = dict(split_parameters(abstract_model(read_model_config(run_dir)))[1])
    lora = read_lora(config)
    if lora is not None:
        try:
            targets = choose_targets(lora.targets, shapes)
        except ValueError as error:
            raise CheckpointError(f"{as_path(run_dir) / CONFIG}: {error}") from error
        sizes = {path: leaf.shape for path, leaf in shapes.items()}
        added = adapter_shapes(sizes, targets, lora.rank, dora=lora.dora)
        if lora.base_dtype:
            shapes = jax.eval_shape(functools.partial(in_int8, targets=targets), shapes)
        shapes |= {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in added.items()}
    stored = open_parameters(run_dir, step, shapes)
    if config.get("optimizer", {}).get("ema", 0.0):
        # Averages are of what trains; the rest is as it was.
        folder = _item(run_dir, step, EMA)
        averaged = open_arrays(folder)
        _check_shapes(folder, averaged, {path: shapes[path] for path in averaged if path in shapes})
        stored |= averaged
    return stored


def read_parameters(
    run_dir: str | AnyPath, step: int, shapes: Mapping[str, jax.ShapeDtypeStruct], *, item: str = PARAMETERS
) -> Parameters:
    """Reads a checkpoint's parameters onto devices, one after another.

    Args:
        run_dir: the run folder.
        step: a step that has a checkpoint.
        shapes: path -> shape, dtype and sharding that the parameter is to have.
        item: `PARAMETERS`, or `EMA` for the averages.

    Raises:
        CheckpointError: a parameter is missing, unexpected, of another shape, or damaged on disk.
    """
    stored = open_parameters(run_dir, step, shapes, item=item)
    return {path: place(stored[path], leaf.sharding, leaf.dtype) for path, leaf in shapes.items()}


def open_parameters(
    run_dir: str | AnyPath, step: int, shapes: Leaves, *, item: str = PARAMETERS
) -> dict[str, StoredArray]:
    """Opens a checkpoint's parameters and checks their names and shapes; reads none.

    Args:
        run_dir: the run folder.
        step: a step that has a checkpoint.
        shapes: path -> anything with the shape that the parameter is to have.
        item: `PARAMETERS`, or `EMA` for the averages.

    Raises:
        CheckpointError: a parameter is missing, unexpected, of another shape, or damaged on disk.
    """
    folder = _item(run_dir, step, item)
    stored = open_arrays(folder)
    _check_shapes(folder, stored, shapes)
    return stored


def _item(run_dir: str | AnyPath, step: int, item: str) -> AnyPath:
    folder = absolute(as_path(run_dir)) / CHECKPOINTS / str(step) / item
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing: the checkpoint is half-written; delete {folder.parent}")
    return folder


def _check_shapes(folder: AnyPath, stored: Mapping[str, StoredArray], expected: Leaves) -> None:
    faults = [f"lacks {path}" for path in expected if path not in stored]
    faults += [f"has unexpected {path}" for path in stored if path not in expected]
    faults += [
        f"has {path} with shape {stored[path].shape}, expected {tuple(leaf.shape)}"
        for path, leaf in expected.items()
        if path in stored and stored[path].shape != tuple(leaf.shape)
    ]
    if faults:
        more = f", and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise CheckpointError(f"{folder} does not fit the model: it {', '.join(faults[:4])}{more}")
