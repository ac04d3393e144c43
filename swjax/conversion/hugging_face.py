"""Hugging Face checkpoints read and written: a folder with config.json and safetensors."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from huggingface_hub import snapshot_download, split_state_dict_into_shards_factory
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from jaxtyping import DTypeLike
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from swjax.conversion.parameters import merge_parameters, split_parameters
from swjax.models.qwen2_5_vl.config import Qwen2_5_VLConfig
from swjax.models.qwen2_5_vl.model import Qwen2_5_VL, abstract_model
from swjax.models.qwen2_5_vl.weights import HubTensor, hub_tensors

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Progress is no part of what a command prints.
_STDERR = Console(stderr=True)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, and why."""


def load_hf(path: str | Path, *, dtype: DTypeLike | None = None) -> Qwen2_5_VL:
    """Load a Hugging Face checkpoint of Qwen2.5-VL.

    Args:
        path: a folder, or a Hub id such as "Qwen/Qwen2.5-VL-7B-Instruct" where the network allows.
        dtype: dtype of the parameters; None keeps the checkpoint's.

    Raises:
        CheckpointError: if a file is missing or damaged, or a tensor is missing, unexpected or mis-shaped.
    """
    folder = find_checkpoint(path)
    config = read_config(folder)
    with ExitStack() as stack:
        files = _open_weights(folder, stack)
        first = next(iter(files.values()))
        found_dtype = np.dtype(first.get_tensor(min(first.keys())).dtype)
        structure, abstract = split_parameters(
            abstract_model(config, param_dtype=found_dtype if dtype is None else dtype)
        )
        tensors = hub_tensors(config, {name: leaf.shape for name, leaf in abstract.items()})
        _check_names(folder, tensors, files, tied=config.text.tie_word_embeddings)
        parameters = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in abstract.items()}
        for name, where in track(tensors.items(), "loading weights", transient=True, console=_STDERR):
            target = parameters[where.path] if where.layer is None else parameters[where.path][where.layer]
            target[...] = _read(folder, files, name, where).reshape(where.split_shape).transpose(where.to_ours)
    return merge_parameters(structure, {name: jnp.asarray(value) for name, value in parameters.items()})


def save_hf(model: Qwen2_5_VL, path: str | Path, *, max_shard_size: int | str = "5GB") -> None:
    """Write a model as a Hugging Face checkpoint: config.json and safetensors with the names that the hub uses.

    Args:
        path: the folder, made if it is not there.
        max_shard_size: a larger model is split over several files, with an index.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    _, parameters = split_parameters(model)
    tensors = hub_tensors(model.config, {name: leaf.shape for name, leaf in parameters.items()})
    item_size = {name: parameters[where.path].dtype.itemsize for name, where in tensors.items()}
    plan = split_state_dict_into_shards_factory(
        {name: (name, where.shape) for name, where in tensors.items()},
        get_storage_size=lambda named: int(np.prod(named[1])) * item_size[named[0]],
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    for filename, names in track(plan.filename_to_tensors.items(), "writing weights", transient=True, console=_STDERR):
        arrays = {name: _to_hub(parameters[tensors[name].path], tensors[name]) for name in names}
        save_file(arrays, folder / filename, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    config = model.config.to_hf(str(parameters["decoder/embedding_vd"].dtype))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def find_checkpoint(path: str | Path) -> Path:
    """The folder of a checkpoint: the path itself, or what a Hub id of that name is downloaded to.

    Raises:
        CheckpointError: if there is neither such a folder nor, as far as the network tells, such a Hub id.
    """
    if Path(path).is_dir():
        return Path(path)
    if Path(path).exists() or str(path).count("/") != 1 or str(path).startswith((".", "/", "~")):
        raise CheckpointError(f"{path}: no such checkpoint folder")
    try:
        return Path(snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
    except (RepositoryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"{path}: no such folder here, and the Hub did not give it ({error})") from error


def read_config(folder: Path) -> Qwen2_5_VLConfig:
    """Read config.json, flat (transformers 4) or nested (5)."""
    file = folder / "config.json"
    try:
        return Qwen2_5_VLConfig.from_hf(json.loads(file.read_text()))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing; a Hugging Face checkpoint folder holds one") from None
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error


def _open_weights(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Open safetensors files by tensor name."""
    index = folder / INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index} is damaged: {error}; fetch the checkpoint again") from error
    else:
        names = [WEIGHTS]
    files = {}
    for name in names:
        if not (folder / name).exists():
            raise CheckpointError(f"{folder / name} is missing; fetch the checkpoint again")
        try:
            opened = stack.enter_context(safe_open(folder / name, framework="numpy"))
        except SafetensorError as error:
            raise CheckpointError(f"{folder / name} is damaged ({error}); fetch it again") from error
        files.update(dict.fromkeys(opened.keys(), opened))
    if not files:
        raise CheckpointError(f"{folder}: the safetensors files hold no tensors")
    return files


def _check_names(folder: Path, expected: Mapping[str, HubTensor], found: Mapping[str, Any], *, tied: bool) -> None:
    missing = [name for name in expected if name not in found]
    # Some tied checkpoints carry the head a second time.
    unexpected = [name for name in found if name not in expected and not (tied and name == "lm_head.weight")]
    for what, names in (("lacks", missing), ("has unexpected", unexpected)):
        if names:
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            raise CheckpointError(f"{folder}: the checkpoint {what} {shown}; is config.json the one of these weights?")


def _read(folder: Path, files: Mapping[str, Any], name: str, where: HubTensor) -> np.ndarray:
    shape = tuple(files[name].get_slice(name).get_shape())
    if shape != where.shape:
        raise CheckpointError(f"{folder}: {name} has shape {shape}, but config.json makes it {where.shape}")
    return files[name].get_tensor(name)


def _to_hub(parameter: Any, where: HubTensor) -> np.ndarray:
    ours = np.asarray(parameter if where.layer is None else parameter[where.layer])
    return np.ascontiguousarray(ours.transpose(np.argsort(where.to_ours))).reshape(where.shape)
