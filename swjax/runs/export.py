"""Trained models written as Hugging Face folders, and adapters as PEFT's.

`transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained` loads the folder. A block `streaming` in its
config.json records what the model was trained with; transformers keeps it and does not use it. Writing reads the
weights as it goes: the model is never in memory as a whole.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
from jaxtyping import DTypeLike

from swjax.hub.errors import CheckpointError
from swjax.hub.model_card import model_card
from swjax.hub.peft import is_adapter_folder, peft_tensors, save_adapter
from swjax.hub.reader import read_json
from swjax.hub.tokenizer_files import TEMPLATES, TOKENIZER_FILES, copy_tokenizer
from swjax.hub.writer import UNFINISHED, save_hf, write_json
from swjax.models.config import ModelConfig
from swjax.models.family import family_of
from swjax.runs.folder import find_step, open_checkpoint, read_lora, read_model_config, read_run_config
from swjax.runs.streaming_model import StoredModel

README = "README.md"


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


def export_adapter(
    run_dir: str | Path, output: str | Path, *, step: int | None = None, dtype: DTypeLike | None = None
) -> None:
    """Write the adapter of a LoRA run.

    Cut off, it leaves a new folder not at all, and one that was there without adapter_config.json.

    Args:
        run_dir: the run folder.
        output: the folder, made if it is not there.
        step: which checkpoint; None takes the latest.
        dtype: of the weights; None keeps float32.

    Raises:
        CheckpointError: it is no run folder or no LoRA run, or the output is there and holds something else.
    """
    config = read_run_config(run_dir)
    lora = read_lora(config)
    if lora is None:
        raise CheckpointError(
            f"{run_dir} trained all weights (config.lora.rank was 0) and has no adapter; export it without --adapter"
        )
    folder = Path(output)
    if folder.exists() and not (folder.is_dir() and is_adapter_folder(folder)):
        raise CheckpointError(f"{folder} is there and is not an exported adapter; choose another --output")
    tensors = peft_tensors(
        open_checkpoint(run_dir, find_step(run_dir, step)), family_of(read_model_config(run_dir)).weights
    )
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        base = config.get("init_from")
        save_adapter(folder, tensors, rank=lora.rank, alpha=lora.alpha, base=base, dtype=dtype)
    except BaseException:
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _generation_config(config: ModelConfig) -> Mapping[str, Any]:
    return {
        "bos_token_id": config.bos_token_id,
        "do_sample": False,
        "eos_token_id": [config.eos_token_id, config.bos_token_id],
        "pad_token_id": config.bos_token_id,
    }


def _preprocessor_config(source: StoredModel) -> Mapping[str, Any]:
    vision = source.config.vision
    return {
        **family_of(source.config).processor,
        "image_mean": [float(str(value)) for value in source.config.geometry.pixel_mean],
        "image_std": [float(str(value)) for value in source.config.geometry.pixel_std],
        "max_pixels": source.record.max_pixels,
        "merge_size": vision.spatial_merge_size,
        "min_pixels": source.record.min_pixels,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
