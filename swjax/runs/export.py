"""Trained models written as Hugging Face folders, and adapters as PEFT's.

`transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained` loads the folder. A block `streaming` in its
config.json records what the model was trained with; transformers keeps it and does not use it. Writing reads the
weights as it goes: the model is never in memory as a whole.
"""

import importlib.resources
from dataclasses import asdict

import jax
from jaxtyping import DTypeLike

from swjax.atomic import write_json
from swjax.hub.errors import CheckpointError
from swjax.hub.model_card import model_card, read_licence
from swjax.hub.peft import ADAPTER, ADAPTER_CONFIG, peft_tensors, save_adapter
from swjax.hub.reader import read_json
from swjax.hub.tokenizer_files import TEMPLATES, TOKENIZER_FILES, copy_tokenizer
from swjax.hub.writer import UNFINISHED, save_hf
from swjax.models.config import ModelConfig
from swjax.models.family import family_of
from swjax.models.parameters import match_all
from swjax.plain import Json, JsonView
from swjax.runs.folder import MODEL, find_step, open_checkpoint, read_lora, read_model_config, read_run_config
from swjax.runs.streaming_model import STREAMING, StoredModel, open_streaming_model
from swjax.storage import AnyPath, as_path, make_folder, remove_folder
from swjax.streaming import StreamSpec, Variant

README = "README.md"
PYTORCH_FILES = ("streaming.py", "finetuning.py")
"""What speaks and what trains in PyTorch: carried by exports of the families that they know, never imported here."""


def export_streaming_model(
    source: StoredModel,
    output: str | AnyPath,
    *,
    dtype: DTypeLike | None = None,
    max_shard_size: int | str = "5GB",
    about: JsonView | None = None,
) -> None:
    """Write a Hugging Face folder: weights, configs, README, the tokenizer's files, and the files for PyTorch.

    All processes must call it, with a folder that they share.

    Args:
        source: from `open_streaming_model`.
        output: the folder.
        dtype: of the weights; None keeps the checkpoint's.
        max_shard_size: a larger model is split over several files, each held in memory while it is written.
        about: what the README says of the run, from `about_run`.

    Raises:
        CheckpointError: if the folder is there and holds something else than an earlier export, or if weights turn out
            to be damaged when they are read.
    """
    folder = as_path(output)
    if folder.exists() and not (folder.is_dir() and _is_export(folder)):
        raise CheckpointError(f"{folder} is there and is not an exported checkpoint; choose another --output")
    is_new = not folder.exists()
    try:
        _write_export(source, folder, dtype, max_shard_size, about or {})
    except BaseException:
        if is_new:
            remove_folder(folder)
        raise


def _write_export(
    source: StoredModel, folder: AnyPath, dtype: DTypeLike | None, max_shard_size: int | str, about: JsonView
) -> None:
    make_folder(folder)
    if jax.process_index() == 0:
        # First, because the weights make a checkpoint of the folder.
        _write_companions(source, folder)
        (folder / README).write_text(model_card(source.config, _record(source), **about), encoding="utf-8")
    record = {"streaming": _record(source)}
    save_hf(
        source.parameters, folder, config=source.config, dtype=dtype, max_shard_size=max_shard_size, more_config=record
    )


def _record(source: StoredModel) -> Json:
    """What the model was trained to do, with the design by its name: PyTorch's file knows no aliases.

    What streams keep and drop is left out where it is all, so that files of older exports read it."""
    usual = {name: getattr(StreamSpec, name) for name in ("memory", "drop")}
    record = {name: value for name, value in asdict(source.record).items() if usual.get(name) != value}
    return record | {"variant": str(Variant(source.record.variant))}


def _write_companions(source: StoredModel, folder: AnyPath) -> None:
    """What stands beside the weights, or beside an adapter."""
    copy_tokenizer(source.tokenizer, folder)
    if not (folder / "generation_config.json").exists():
        write_json(folder / "generation_config.json", _generation_config(source.config))
    write_json(folder / "preprocessor_config.json", _preprocessor_config(source))
    _leave_out_pixels(folder / "processor_config.json")
    for name in family_of(source.config).pytorch_files:
        text = importlib.resources.files("swjax.hub").joinpath("pytorch", name).read_text(encoding="utf-8")
        (folder / name).write_text(text, encoding="utf-8")


def about_run(path: str | AnyPath) -> Json:
    """What a run folder knows of its model's origin: base, its licence, data and scores; {} for another folder."""
    run_dir = as_path(path)
    if not (run_dir / MODEL).exists():
        return {}
    config = read_run_config(run_dir)
    base = config.get("init_from") or None
    scores = run_dir / "evaluation" / "scores.json"
    return {
        "base": base,
        "licence": read_licence(as_path(base)) if base else None,
        "data": config["data"].get("train"),
        "scores": read_json(scores).get("model", {}) if scores.exists() else {},
    }


def _leave_out_pixels(file: AnyPath) -> None:
    """Takes the base's sizes of pictures out of a processor_config.json: they would hide those of the training."""
    if file.exists():
        content = read_json(file)
        kept = {key: value for key, value in content.items() if key not in ("image_processor", "video_processor")}
        if kept != content:
            write_json(file, kept)


def _is_export(folder: AnyPath) -> bool:
    """Whether it is an exported folder, or one that was cut off, or empty."""
    others = (*TOKENIZER_FILES, TEMPLATES, README, *PYTORCH_FILES)
    known = (*others, "model*.safetensors", "model.safetensors.index.json", f"*{UNFINISHED}", "*.partial")
    ours = {file for pattern in known for file in folder.glob(pattern)}
    return (folder / "config.json").exists() or set(folder.iterdir()) <= ours


def export_adapter(
    run_dir: str | AnyPath, output: str | AnyPath, *, step: int | None = None, dtype: DTypeLike | None = None
) -> None:
    """Write the adapter of a LoRA run, what it was trained to do (streaming.json), and the files that speak in PyTorch.

    Cut off, it leaves a new folder not at all, and one that was there without adapter_config.json.

    Args:
        run_dir: the run folder.
        output: the folder, made if it is not there.
        step: which checkpoint; None takes the latest.
        dtype: of the weights; None keeps float32.

    Raises:
        CheckpointError: it is no run folder or no LoRA run, or the output is there and holds something else.
    """
    if not (as_path(run_dir) / MODEL).exists():
        raise CheckpointError(f"{run_dir} is no run folder, so it has no adapter; export it without --format lora")
    config = read_run_config(run_dir)
    lora = read_lora(config)
    if lora is None:
        raise CheckpointError(
            f"{run_dir} trained all weights (config.lora.rank was 0) and has no adapter; "
            "export it without --format lora"
        )
    if config.get("init_from") and (as_path(config["init_from"]) / MODEL).exists():
        raise CheckpointError(
            f"{run_dir} started from the run {config['init_from']}, which is no base that PEFT loads; export it "
            "without --format lora, or start from an exported folder"
        )
    folder = as_path(output)
    if folder.exists() and not (folder.is_dir() and _is_adapter_export(folder)):
        raise CheckpointError(f"{folder} is there and is not an exported adapter; choose another --output")
    stored = open_checkpoint(run_dir, find_step(run_dir, step))
    beside = match_all(lora.additional, stored, key="lora.additional")
    tensors = peft_tensors(stored, read_model_config(run_dir), additional=beside)
    is_new = not folder.exists()
    make_folder(folder)
    try:
        base = config.get("init_from")
        source = open_streaming_model(run_dir, step=step)
        _write_companions(source, folder)
        write_json(folder / STREAMING, _record(source))
        text = model_card(source.config, _record(source), **about_run(run_dir), adapter=True)
        (folder / README).write_text(text, encoding="utf-8")
        save_adapter(
            folder,
            tensors,
            rank=lora.rank,
            alpha=lora.alpha,
            rslora=lora.rslora,
            dropout=lora.dropout,
            dora=lora.dora,
            base=base,
            dtype=dtype,
        )
    except BaseException:
        if is_new:
            remove_folder(folder)
        raise


def _is_adapter_export(folder: AnyPath) -> bool:
    """Whether it is an exported adapter, or one that was cut off, or empty."""
    known = (
        *TOKENIZER_FILES,
        TEMPLATES,
        README,
        STREAMING,
        *PYTORCH_FILES,
        ADAPTER,
        ADAPTER_CONFIG,
        f"*{UNFINISHED}",
        "*.partial",
    )
    return set(folder.iterdir()) <= {file for pattern in known for file in folder.glob(pattern)}


def _generation_config(config: ModelConfig) -> JsonView:
    return {
        "bos_token_id": config.bos_token_id,
        "do_sample": False,
        "eos_token_id": [config.eos_token_id, config.bos_token_id],
        "pad_token_id": config.bos_token_id,
    }


def _preprocessor_config(source: StoredModel) -> JsonView:
    vision, file = source.config.vision, source.tokenizer / "preprocessor_config.json"
    base = read_json(file) if file.exists() else {}
    base.pop("size", None)  # of the base's pictures
    geometry = source.config.geometry
    return base | {
        **family_of(source.config).processor,
        "image_mean": [float(str(value)) for value in geometry.pixel_mean],
        "image_std": [float(str(value)) for value in geometry.pixel_std],
        "max_pixels": source.record.max_pixels,
        "merge_size": vision.spatial_merge_size,
        "min_pixels": source.record.min_pixels,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
