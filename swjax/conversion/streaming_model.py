"""A checkpoint with all that streaming needs: weights, tokenizer, position design, frame rate and pixel budget.

It is read from a run folder or from a Hugging Face folder, and written as a Hugging Face folder that
`transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained` loads. There, a block `streaming` in config.json
records what the model was trained with; transformers keeps it and does not use it.
Writing reads the weights as it goes: the model is never in memory as a whole.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import jax
from jaxtyping import DTypeLike

from swjax.conversion.errors import CheckpointError
from swjax.conversion.hub_writer import UNFINISHED, save_hf, write_json
from swjax.conversion.hugging_face import find_checkpoint, load_hf, open_hf, read_json
from swjax.conversion.model_card import model_card
from swjax.conversion.run_folder import (
    MODEL,
    TOKENIZER,
    find_step,
    load_run,
    open_run_model,
    read_model_config,
    read_run_config,
)
from swjax.conversion.stored import StoredArray
from swjax.conversion.tokenizer_files import TEMPLATES, TOKENIZER_FILES, copy_tokenizer
from swjax.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig
from swjax.models.qwen2_5_vl.vision import PIXEL_MEAN, PIXEL_STD
from swjax.streaming import Variant

README = "README.md"


@dataclass(frozen=True)
class StreamingRecord:
    """What a model was trained to do; defaults are the paper's.

    Attributes:
        variant: position design.
        wait_k: answer tokens after each frame.
        gap: first id of the answer in GIPE.
        fps: pictures taken a second; two of them make a frame.
        min_pixels, max_pixels: smallest and largest area of a resized picture.
    """

    variant: str = "gdpe"
    wait_k: int = 3
    gap: int = 10_000
    fps: float = 2.0
    min_pixels: int = 56 * 56
    max_pixels: int = 448 * 448


@dataclass(frozen=True)
class StoredModel:
    """A model on disk with its tokenizer's folder and what it was trained to do; `parameters` are by path."""

    config: Qwen2_5_VLConfig
    parameters: Mapping[str, StoredArray]
    tokenizer: Path
    record: StreamingRecord


@dataclass(frozen=True)
class StreamingModel:
    """A model with its tokenizer's folder and what it was trained to do."""

    model: Qwen2_5_VL
    tokenizer: Path
    record: StreamingRecord


def load_streaming_model(
    path: str | Path, *, step: int | None = None, dtype: DTypeLike | None = None
) -> StreamingModel:
    """Load the model of a run folder, or of a Hugging Face folder or Hub id.

    Args:
        path: the folder or Hub id.
        step: which checkpoint of a run folder; None takes the latest.
        dtype: of the parameters; None keeps the checkpoint's.

    Raises:
        CheckpointError: if it cannot be used.
    """
    if (Path(path) / MODEL).exists():
        run = load_run(path, step) if dtype is None else load_run(path, step, dtype=dtype)
        return StreamingModel(run.model, run.tokenizer, _run_record(run.config))
    folder = _hub_folder(path, step)
    return StreamingModel(load_hf(folder, dtype=dtype), folder, read_record(folder))


def open_streaming_model(path: str | Path, *, step: int | None = None) -> StoredModel:
    """Open what `load_streaming_model` loads: names and shapes of all weights are checked, and none is read.

    Raises:
        CheckpointError: if it cannot be used.
    """
    if (Path(path) / MODEL).exists():
        parameters = open_run_model(path, find_step(path, step))
        record = _run_record(read_run_config(path))
        return StoredModel(read_model_config(path), parameters, Path(path) / TOKENIZER, record)
    folder = _hub_folder(path, step)
    config, parameters = open_hf(folder)
    return StoredModel(config, parameters, folder, read_record(folder))


def export_streaming_model(
    source: StoredModel, output: str | Path, *, dtype: DTypeLike | None = None, max_shard_size: int | str = "5GB"
) -> None:
    """Write a Hugging Face folder: weights, config, generation config, preprocessor, README, and the tokenizer's files.

    All processes must call it, with a folder that they share.

    Args:
        source: from `open_streaming_model`.
        output: the folder.
        dtype: of the weights; None keeps the checkpoint's.
        max_shard_size: a larger model is split over several files, each held in memory while it is written.

    Raises:
        CheckpointError: if the folder is there and holds something else than an earlier export, or if weights turn out
            to be damaged when they are read.
    """
    folder = Path(output)
    if folder.exists() and not (folder.is_dir() and _is_export(folder)):
        raise CheckpointError(f"{folder} is there and is not an exported checkpoint; choose another --output")
    is_new = not folder.exists()
    try:
        _write_export(source, folder, dtype, max_shard_size)
    except BaseException:
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_export(source: StoredModel, folder: Path, dtype: DTypeLike | None, max_shard_size: int | str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        # First, because the weights make a checkpoint of the folder.
        write_json(folder / "generation_config.json", _generation_config(source.config))
        write_json(folder / "preprocessor_config.json", _preprocessor_config(source))
        copy_tokenizer(source.tokenizer, folder)
        _leave_out_pixels(folder / "processor_config.json")
        (folder / README).write_text(model_card(source.config, asdict(source.record)), encoding="utf-8")
    record = {"streaming": asdict(source.record)}
    save_hf(
        source.parameters, folder, config=source.config, dtype=dtype, max_shard_size=max_shard_size, more_config=record
    )


def _leave_out_pixels(file: Path) -> None:
    """Takes the base's sizes of pictures out of a processor_config.json: they would hide those of the training."""
    if file.exists():
        content = read_json(file)
        kept = {key: value for key, value in content.items() if key not in ("image_processor", "video_processor")}
        if kept != content:
            write_json(file, kept)


def _is_export(folder: Path) -> bool:
    """Whether it is an exported folder, or one that was cut off, or empty."""
    others = (*TOKENIZER_FILES, TEMPLATES, README, "generation_config.json", "preprocessor_config.json")
    known = (*others, "model*.safetensors", "model.safetensors.index.json", f"*{UNFINISHED}")
    ours = {file for pattern in known for file in folder.glob(pattern)}
    return (folder / "config.json").exists() or set(folder.iterdir()) <= ours


def _hub_folder(path: str | Path, step: int | None) -> Path:
    if step is not None:
        raise CheckpointError(f"{path} is no run folder, so it has no checkpoint of step {step}")
    return find_checkpoint(path)


def _run_record(config: Mapping[str, Any]) -> StreamingRecord:
    keys = {**config, **config["data"]}
    return StreamingRecord(**{field.name: keys[field.name] for field in fields(StreamingRecord)})


def read_record(folder: Path) -> StreamingRecord:
    """What a Hugging Face folder's model was trained to do, by the block `streaming` of its config.json.

    Raises:
        CheckpointError: the block has keys that nobody knows, or values that no model is trained with.
    """
    found = read_json(folder / "config.json").get("streaming", {})
    if not isinstance(found, dict):
        raise CheckpointError(f"{folder / 'config.json'}: 'streaming' must be an object")
    known = {field.name for field in fields(StreamingRecord)}
    unknown = sorted(set(found) - known)
    if unknown:
        raise CheckpointError(f"{folder / 'config.json'}: the block 'streaming' has unknown keys {', '.join(unknown)}")
    record = StreamingRecord(**found)
    file = folder / "config.json"
    try:
        Variant(record.variant)
    except ValueError as error:
        raise CheckpointError(f"{file}: streaming: {error}") from error
    for key, value in asdict(record).items():
        kinds = (int, float) if key == "fps" else (int,)
        is_number = isinstance(value, kinds) and not isinstance(value, bool) and 0 < value < 2**31
        if key != "variant" and not is_number:
            wanted = f"{kinds[-1].__name__} above 0"
            raise CheckpointError(f"{file}: streaming: {key} is {value!r}; it must be of type {wanted}")
    return record


def _generation_config(config: Qwen2_5_VLConfig) -> Mapping[str, Any]:
    return {
        "bos_token_id": config.bos_token_id,
        "do_sample": False,
        "eos_token_id": [config.eos_token_id, config.bos_token_id],
        "pad_token_id": config.bos_token_id,
    }


def _preprocessor_config(source: StoredModel) -> Mapping[str, Any]:
    vision = source.config.vision
    return {
        "image_mean": [float(str(value)) for value in PIXEL_MEAN],
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": [float(str(value)) for value in PIXEL_STD],
        "max_pixels": source.record.max_pixels,
        "merge_size": vision.spatial_merge_size,
        "min_pixels": source.record.min_pixels,
        "patch_size": vision.patch_size,
        "processor_class": "Qwen2_5_VLProcessor",
        "temporal_patch_size": vision.temporal_patch_size,
    }
