"""Hugging Face checkpoints read: a folder with config.json and safetensors, here or on the Hub."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import jax
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from jaxtyping import DTypeLike
from rich.progress import track

from swjax.hub.errors import CheckpointError
from swjax.hub.files import check_files, find_tensors, has_own_head, stored_parameters
from swjax.hub.progress import STDERR
from swjax.models.config import ModelConfig
from swjax.models.family import abstract_model, family_of, read_model_config
from swjax.models.model import VideoLanguageModel
from swjax.models.parameters import Leaves, merge_parameters, split_parameters
from swjax.models.stored import StoredArray, place
from swjax.notice import notify
from swjax.plain import Json
from swjax.storage import AnyPath, as_path, refused_scheme

HUB_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.jinja")
"""The files of a Hub repository that swjax uses: weights, configurations, tokenizer and processor."""

CHECKPOINT = "a Hugging Face checkpoint folder"

Shardings = (
    Mapping[str, jax.sharding.Sharding]
    | Callable[[Mapping[str, jax.ShapeDtypeStruct]], Mapping[str, jax.sharding.Sharding]]
)
"""Parameter path -> where it goes, or what tells this from path -> shape."""


def load_hf(
    path: str | AnyPath,
    *,
    dtype: DTypeLike | Mapping[str, DTypeLike] | None = None,
    shardings: Shardings | None = None,
) -> VideoLanguageModel:
    """Load a Hugging Face checkpoint of any family (`swjax.models.family`).

    Each process reads what its own devices hold, a tensor at a time: the model is never in host memory as a whole.

    Args:
        path: a folder, or a Hub id such as "Qwen/Qwen2.5-VL-7B-Instruct" where the network allows.
        dtype: dtype of the parameters, of all or by path; None keeps the checkpoint's.
        shardings: where parameters go: a mapping by path, or a function that makes one of path -> shape, such as
            `functools.partial(parameter_shardings, mesh)`; None puts them all on the first device.

    Raises:
        CheckpointError: if a file is missing or damaged, or a tensor is missing, unexpected or mis-shaped.
    """
    config, stored = open_hf(path)
    structure, shapes = split_parameters(abstract_model(config))
    one = stored_dtype(stored) if dtype is None else dtype
    dtypes = one if isinstance(one, Mapping) else dict.fromkeys(shapes, one)
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, dtypes[name]) for name, leaf in shapes.items()}
    where = choose_shardings(shardings, shapes)
    parameters = {
        name: place(stored[name], where[name], dtypes[name])
        for name in track(shapes, "loading weights", transient=True, console=STDERR)
    }
    return merge_parameters(structure, parameters)


def open_hf(path: str | AnyPath) -> tuple[ModelConfig, dict[str, StoredArray]]:
    """Open a Hugging Face checkpoint: every tensor is found and its shape checked, and no weights are read.

    But a head beside an embedding that config.json calls tied to it is compared with it: if they differ, the head that
    is there is the model's, whatever config.json says, and the configuration that is returned says so too.

    Args:
        path: a folder or a Hub id.

    Returns:
        The model's configuration, and its parameters by path.

    Raises:
        CheckpointError: as for `load_hf`.
    """
    folder = find_checkpoint(path)
    config = read_config(folder)
    table = family_of(config).weights
    files = find_tensors(folder, table.hub_name)
    if max(config.text.num_layers, config.vision.depth) > len(files):
        raise CheckpointError(f"{folder}: config.json has more layers than there are tensors, {len(files)}")
    if config.text.tie_word_embeddings and has_own_head(folder, files):
        notify(f"{folder}: config.json calls the head tied to the embedding, but the weights hold another; taking it")
        config = replace(config, text=replace(config.text, tie_word_embeddings=False))
    shapes = {name: leaf.shape for name, leaf in split_parameters(abstract_model(config))[1].items()}
    tensors = table.hub_tensors(config, shapes)
    check_files(folder, tensors, files, tied=config.text.tie_word_embeddings)
    return config, stored_parameters(files, tensors, shapes)


def stored_dtype(parameters: Leaves) -> DTypeLike:
    """The dtype of a checkpoint: that of its embedding, which no one keeps in higher precision than the rest."""
    return parameters["decoder/embedding_vd"].dtype


def find_checkpoint(path: str | AnyPath) -> AnyPath:
    """The folder of a checkpoint: the path itself, or what a Hub id of that name is downloaded to.

    Raises:
        CheckpointError: if there is neither such a folder nor, as far as the network tells, such a Hub id, or if the
            folder is that of a run or an adapter.
    """
    folder = as_path(path)
    if not folder.is_dir():
        return download(str(path))
    if (folder / "model.json").exists() and (folder / "checkpoints").is_dir():
        raise CheckpointError(
            f"{folder} is the folder of a run, not a Hugging Face checkpoint; write its model with "
            f"`swjax export --checkpoint {folder} --output DIR` and give DIR"
        )
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise CheckpointError(
            f"{folder} holds a LoRA adapter and not the model that it changes; merge it into its base "
            "(PEFT's merge_and_unload, or `swjax export` of its run without --format lora) and give that folder"
        )
    return folder


def download(hub_id: str, folder: Path | None = None) -> Path:
    """Download a Hub repository's weights, configuration, tokenizer and processor; what is there already is kept.

    Args:
        hub_id: such as "Qwen/Qwen2.5-VL-7B-Instruct".
        folder: where to; None is the Hub's own cache.

    Raises:
        CheckpointError: it is no Hub id, or the Hub does not give it.
    """
    if refused := refused_scheme(hub_id):
        raise CheckpointError(refused)
    if "://" in hub_id or Path(hub_id).exists() or hub_id.count("/") != 1 or hub_id.startswith((".", "/", "~")):
        raise CheckpointError(f"{hub_id}: no such checkpoint folder")
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(HUB_PATTERNS), local_dir=folder))
    except (RepositoryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{hub_id}: no such folder here, and the Hub did not give it ({error}); where there is no network, "
            f"download it elsewhere (`hf download {hub_id} --local-dir FOLDER`), copy the folder here and give that"
        ) from error


def read_config(folder: AnyPath) -> ModelConfig:
    """Read config.json, flat (transformers 4) or nested (5)."""
    return parse_config(folder / "config.json")


def parse_config(file: AnyPath, *, holder: str = CHECKPOINT) -> ModelConfig:
    """Read a file with the content of a config.json; `holder` is as for `read_json`.

    Raises:
        CheckpointError: the file is missing or damaged, or the model is one that cannot be built.
    """
    try:
        return read_model_config(read_json(file, holder=holder))
    except ValueError as error:
        raise error if isinstance(error, CheckpointError) else CheckpointError(f"{file}: {error}") from error


def read_json(file: AnyPath, *, holder: str = CHECKPOINT) -> Json:
    """Read a JSON object, in UTF-8 with or without a byte order mark.

    Args:
        file: the file.
        holder: what such a file is found in, for the message where it is missing.

    Raises:
        CheckpointError: the file is missing or damaged, or holds something else.
    """
    try:
        content = json.loads(file.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing; {holder} holds one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} must hold a JSON object, and holds a {type(content).__name__}")
    return content


def choose_shardings(
    shardings: Shardings | None, shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> Mapping[str, jax.sharding.Sharding | None]:
    """Where each parameter goes.

    Args:
        shardings: what was asked for.
        shapes: of the parameters, by path.

    Raises:
        ValueError: if it says nothing of one of them.
    """
    if shardings is None:
        return dict.fromkeys(shapes)
    found = shardings(shapes) if callable(shardings) else shardings
    lacking = [path for path in shapes if path not in found]
    if lacking:
        raise ValueError(f"shardings say nothing of {', '.join(lacking[:4])}")
    return found
