"""A checkpoint with all that streaming needs: weights, tokenizer, position design, frame rate and pixel budget.

It is read from a run folder or from a Hugging Face folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from jaxtyping import DTypeLike

from swjax.hub.errors import CheckpointError
from swjax.hub.peft import open_adapter
from swjax.hub.reader import Shardings, find_checkpoint, load_hf, open_hf, read_json, stored_dtype
from swjax.models.adapters import effective_alpha, is_adapter, merge_stored
from swjax.models.config import ModelConfig
from swjax.models.family import abstract_model
from swjax.models.model import VideoLanguageModel
from swjax.models.parameters import match_all, merge_parameters, split_parameters
from swjax.models.stored import StoredArray, place
from swjax.plain import JsonView
from swjax.runs.folder import (
    MODEL,
    TOKENIZER,
    find_step,
    load_run,
    open_checkpoint,
    open_run_model,
    read_lora,
    read_model_config,
    read_run_config,
)
from swjax.storage import AnyPath, as_path
from swjax.streaming import StreamSpec

STREAMING = "streaming.json"
"""Beside an adapter: what it was trained to do."""


@dataclass(frozen=True)
class StoredModel:
    """A model on disk with its tokenizer's folder and what it was trained to do; `parameters` are by path."""

    config: ModelConfig
    parameters: Mapping[str, StoredArray]
    tokenizer: AnyPath
    record: StreamSpec


@dataclass(frozen=True)
class StreamingModel:
    """A model with its tokenizer's folder and what it was trained to do."""

    model: VideoLanguageModel
    tokenizer: AnyPath
    record: StreamSpec


def load_streaming_model(
    path: str | AnyPath,
    *,
    step: int | None = None,
    dtype: DTypeLike | None = None,
    shardings: Shardings | None = None,
) -> StreamingModel:
    """Load the model of a run folder, or of a Hugging Face folder or Hub id.

    Args:
        path: the folder or Hub id.
        step: which checkpoint of a run folder; None takes the latest.
        dtype: of the parameters; None keeps the checkpoint's.
        shardings: where they go, as for `swjax.hub.load_hf`; None puts them all on the first device.

    Raises:
        CheckpointError: if it cannot be used.
    """
    if (as_path(path) / MODEL).exists():
        kept = {} if dtype is None else {"dtype": dtype}
        run = load_run(path, step, shardings=shardings, **kept)
        return StreamingModel(run.model, run.tokenizer, _run_record(run.config))
    folder = _hub_folder(path, step)
    return StreamingModel(load_hf(folder, dtype=dtype, shardings=shardings), folder, read_record(folder))


def load_adapted_base(
    run_dir: str | AnyPath, base: str | AnyPath, *, step: int | None = None, adapter_dtype: DTypeLike | None = None
) -> StreamingModel:
    """Load the model that a run's adapter makes of its base, in float32, whatever dtype the run computed in.

    Args:
        run_dir: the folder of a LoRA run.
        base: folder or Hub id of the model that it started from.
        step: which checkpoint; None takes the latest.
        adapter_dtype: what the adapter is rounded to; None keeps its own.

    Raises:
        CheckpointError: if one of them cannot be used.
    """
    config = read_run_config(run_dir)
    lora = read_lora(config)
    if lora is None:
        raise CheckpointError(f"{run_dir} trained all weights (config.lora.rank was 0) and has no adapter")
    model_config, stored = open_hf(base)
    rounded = {path: array.astype("float32") for path, array in stored.items()}
    found = open_checkpoint(run_dir, find_step(run_dir, step))
    beside = match_all(lora.additional, found, key="lora.additional")
    for path, array in found.items():
        if is_adapter(path) or path in beside:
            rounded[path] = array.astype(adapter_dtype or array.dtype).astype("float32")
    structure, _ = split_parameters(abstract_model(model_config, param_dtype="float32"))
    merged = merge_stored(rounded, alpha=lora.effective_alpha)
    parameters = {path: place(array, None, "float32") for path, array in merged.items()}
    return StreamingModel(merge_parameters(structure, parameters), as_path(run_dir) / TOKENIZER, _run_record(config))


def load_with_adapter(
    base: str | AnyPath, adapter: str | AnyPath, *, step: int | None = None, dtype: DTypeLike | None = None
) -> StreamingModel:
    """Load a model with an adapter in PEFT's form merged into it.

    What it was trained to do is what the adapter's folder says (streaming.json), else what the base says.

    Args:
        base: run folder, Hugging Face folder or Hub id of the model that the adapter changes.
        adapter: the folder of the adapter.
        step: which checkpoint of a run folder; None takes the latest.
        dtype: of the parameters; None keeps the base's.

    Raises:
        CheckpointError: if one of them cannot be used.
    """
    source = open_streaming_model(base, step=step)
    shapes = {path: array.shape for path, array in source.parameters.items()}
    found = open_adapter(adapter, source.config, shapes)
    alpha = effective_alpha(found.alpha, found.rank, rslora=found.rslora)
    merged = merge_stored({**source.parameters, **found.parameters}, alpha=alpha)
    kept = dtype or stored_dtype(source.parameters)
    structure, _ = split_parameters(abstract_model(source.config, param_dtype=kept))
    parameters = {path: place(array, None, kept) for path, array in merged.items()}
    record = source.record
    if (as_path(adapter) / STREAMING).exists():
        try:
            record = StreamSpec(**read_json(as_path(adapter) / STREAMING))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{as_path(adapter) / STREAMING}: {error}") from error
    return StreamingModel(merge_parameters(structure, parameters), source.tokenizer, record)


def open_streaming_model(path: str | AnyPath, *, step: int | None = None) -> StoredModel:
    """Open what `load_streaming_model` loads: names and shapes of all weights are checked, and none is read.

    Raises:
        CheckpointError: if it cannot be used.
    """
    if (as_path(path) / MODEL).exists():
        parameters = open_run_model(path, find_step(path, step))
        record = _run_record(read_run_config(path))
        return StoredModel(read_model_config(path), parameters, as_path(path) / TOKENIZER, record)
    folder = _hub_folder(path, step)
    config, parameters = open_hf(folder)
    return StoredModel(config, parameters, folder, read_record(folder))


def _hub_folder(path: str | AnyPath, step: int | None) -> AnyPath:
    if step is not None:
        raise CheckpointError(f"{path} is no run folder, so it has no checkpoint of step {step}")
    return find_checkpoint(path)


def _run_record(config: JsonView) -> StreamSpec:
    keys = {**config, **config["data"]}
    return StreamSpec(**{field.name: keys[field.name] for field in fields(StreamSpec) if field.name in keys})


def read_record(folder: AnyPath) -> StreamSpec:
    """What a Hugging Face folder's model was trained to do, by the block `streaming` of its config.json.

    Raises:
        CheckpointError: the block has keys that nobody knows, or values that no model is trained with.
    """
    found = read_json(folder / "config.json").get("streaming", {})
    if not isinstance(found, dict):
        raise CheckpointError(f"{folder / 'config.json'}: 'streaming' must be an object")
    known = {field.name for field in fields(StreamSpec)}
    unknown = sorted(set(found) - known)
    if unknown:
        raise CheckpointError(f"{folder / 'config.json'}: the block 'streaming' has unknown keys {', '.join(unknown)}")
    try:
        return StreamSpec(**found)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: streaming: {error}") from error
