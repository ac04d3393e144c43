"""A checkpoint with all that streaming needs: weights, tokenizer, position design, frame rate and pixel budget.

It is read from a run folder or from a Hugging Face folder, and written as a Hugging Face folder that
`transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained` loads. There, a block `streaming` in config.json
records what the model was trained with; transformers keeps it and does not use it.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from jaxtyping import DTypeLike

from swjax.conversion.errors import CheckpointError
from swjax.conversion.hub_writer import save_hf
from swjax.conversion.hugging_face import find_checkpoint, load_hf
from swjax.conversion.run_folder import MODEL, load_run
from swjax.models.qwen2_5_vl import Qwen2_5_VL
from swjax.models.qwen2_5_vl.vision import PIXEL_MEAN, PIXEL_STD

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)


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
        keys = {**run.config, **run.config["data"]}
        record = StreamingRecord(**{field.name: keys[field.name] for field in fields(StreamingRecord)})
        return StreamingModel(run.model, run.tokenizer, record)
    if step is not None:
        raise CheckpointError(f"{path} is no run folder, so it has no checkpoint of step {step}")
    folder = find_checkpoint(path)
    model = load_hf(folder, dtype=dtype)
    return StreamingModel(model, folder, _read_record(folder))


def export_streaming_model(source: StreamingModel, output: str | Path) -> None:
    """Write a Hugging Face folder: weights, config, generation config, tokenizer and preprocessor.

    Raises:
        CheckpointError: if the folder is there and holds something else than an earlier export.
    """
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "config.json").exists())):
        raise CheckpointError(f"{folder} is there and is not an exported checkpoint; choose another --output")
    save_hf(source.model, folder)
    config_file = folder / "config.json"
    config = json.loads(config_file.read_text()) | {"streaming": asdict(source.record)}
    _write_json(config_file, config)
    _write_json(folder / "generation_config.json", _generation_config(source.model))
    _write_json(folder / "preprocessor_config.json", _preprocessor_config(source))
    for name in TOKENIZER_FILES:
        if (source.tokenizer / name).exists() and source.tokenizer.resolve() != folder.resolve():
            shutil.copyfile(source.tokenizer / name, folder / name)


def _read_record(folder: Path) -> StreamingRecord:
    found = json.loads((folder / "config.json").read_text()).get("streaming", {})
    known = {field.name for field in fields(StreamingRecord)}
    unknown = sorted(set(found) - known)
    if unknown:
        raise CheckpointError(f"{folder / 'config.json'}: the block 'streaming' has unknown keys {', '.join(unknown)}")
    return StreamingRecord(**found)


def _generation_config(model: Qwen2_5_VL) -> Mapping[str, Any]:
    config = model.config
    return {
        "bos_token_id": config.bos_token_id,
        "do_sample": False,
        "eos_token_id": [config.eos_token_id, config.bos_token_id],
        "pad_token_id": config.bos_token_id,
    }


def _preprocessor_config(source: StreamingModel) -> Mapping[str, Any]:
    vision = source.model.config.vision
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


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
