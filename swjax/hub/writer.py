"""Hugging Face checkpoints written: shard file after shard file, over one or several processes.

A file holds tensors of few parameters, all layers of one after another, so that each parameter is read once. Host
memory holds the tensors of one file and, of a parameter that is on disk, the rows that are stored together.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import DTypeLike
from rich.progress import track
from safetensors.numpy import save_file

from swjax.atomic import write_json
from swjax.hub.errors import CheckpointError
from swjax.hub.files import INDEX, WEIGHTS
from swjax.hub.progress import STDERR
from swjax.hub.reader import stored_dtype
from swjax.models.config import ModelConfig
from swjax.models.family import family_of
from swjax.models.model import VideoLanguageModel
from swjax.models.parameters import Leaves, split_parameters
from swjax.models.stored import StoredArray
from swjax.models.weights import HubTensor
from swjax.plain import JsonView
from swjax.storage import AnyPath, as_path, is_remote, make_folder, writing_file

UNFINISHED = ".unfinished"
"""How the names of files end that are still being written."""

# So many rows of a matrix are transposed at a time: their cache lines are still there for the next ones.
_TILE = 64


def save_hf(
    model: VideoLanguageModel | Leaves,
    path: str | AnyPath,
    *,
    config: ModelConfig | None = None,
    dtype: DTypeLike | None = None,
    max_shard_size: int | str = "5GB",
    more_config: JsonView | None = None,
) -> None:
    """Write a Hugging Face checkpoint: config.json and safetensors with the names that the hub uses.

    All processes must call it, with a folder that they share; each writes a part of the files. An earlier checkpoint in
    the folder stays whole until the new files are complete. Killed at any time, it leaves either a whole checkpoint or
    none that loads: files are written under other names first, and the index and config.json come last. In a bucket,
    where nothing can be renamed, an earlier checkpoint's config.json goes first, and a file at a time is on disk.

    Args:
        model: a model, or its parameters by path: arrays of numpy or JAX, or `StoredArray`s.
        path: the folder, made if it is not there.
        config: the model's, where `model` is parameters.
        dtype: dtype of the weights; None keeps the parameters'.
        max_shard_size: a larger model is split over several files, with an index.
        more_config: further keys of config.json.

    Raises:
        CheckpointError: the processes do not see the same folder.
    """
    folder = as_path(path)
    if isinstance(model, VideoLanguageModel):
        config, parameters = model.config, split_parameters(model)[1]
    elif config is not None:
        parameters = dict(model)
    else:
        raise TypeError("save_hf needs the configuration of a model of which it is given the parameters alone")
    make_folder(folder)
    tensors = family_of(config).weights.hub_tensors(
        config, {name: tuple(leaf.shape) for name, leaf in parameters.items()}
    )
    sizes = {
        name: int(np.prod(where.shape)) * np.dtype(parameters[where.path].dtype if dtype is None else dtype).itemsize
        for name, where in tensors.items()
    }
    plan = split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=int,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    if is_remote(folder) and jax.process_index() == 0:
        for name in ("config.json", INDEX):
            (folder / name).unlink(missing_ok=True)
    _write_files(folder, plan.filename_to_tensors, tensors, parameters, dtype)
    _meet("written")
    if jax.process_index() == 0:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename} if plan.is_sharded else None
        name = np.dtype(stored_dtype(parameters) if dtype is None else dtype).name
        _publish(folder, list(plan.filename_to_tensors), index, config.to_hf(name) | dict(more_config or {}))
    _meet("published")


def _write_files(
    folder: AnyPath,
    files: Mapping[str, Sequence[str]],
    tensors: Mapping[str, HubTensor],
    parameters: Leaves,
    dtype: DTypeLike | None,
) -> None:
    """Write this process's files; rounds of one file a process, so that all write at the same time."""
    here, processes = jax.process_index(), jax.process_count()
    names = list(files)
    held: dict[tuple[str, int], np.ndarray] = {}
    for first in track(range(0, len(names), processes), "writing weights", transient=True, console=STDERR):
        arrays = {}
        for owner, filename in enumerate(names[first : first + processes]):
            for name in files[filename]:
                found = _fetch(parameters, tensors[name], held, needed=owner == here)
                if found is not None:
                    arrays[name] = _to_hub(found, tensors[name], dtype)
        if arrays:
            name = names[first + here] + ("" if is_remote(folder) else UNFINISHED)
            with writing_file(folder / name) as file:
                save_file(arrays, file, metadata={"format": "pt"})


def _fetch(
    parameters: Leaves, where: HubTensor, held: dict[tuple[str, int], np.ndarray], *, needed: bool
) -> np.ndarray | None:
    """The array of one tensor, its axes as ours; None where nobody needs it here.

    Args:
        parameters: by path.
        where: which tensor.
        held: the rows that were read last, among which the next tensor may be; changed.
        needed: whether this process writes the tensor. It takes part in gathering it all the same.
    """
    parameter = parameters[where.path]
    if isinstance(parameter, jax.Array) and not parameter.is_fully_addressable:
        gathered = _gather(parameter, where.layer)
        return np.asarray(gathered.addressable_data(0)) if needed else None
    if not needed:
        return None
    if not isinstance(parameter, StoredArray):
        return np.asarray(parameter if where.layer is None else parameter[where.layer])
    if where.layer is None:
        return parameter.read_rows(0, parameter.shape[0])
    start = where.layer - where.layer % parameter.rows
    if (where.path, start) not in held:
        held.clear()  # before the next rows are read, not after
        held[where.path, start] = parameter.read_rows(start, min(start + parameter.rows, parameter.shape[0]))
    return held[where.path, start][where.layer - start]


def _gather(parameter: jax.Array, layer: int | None) -> jax.Array:
    """A parameter, or one layer of it, whole on every device of its mesh; every process takes part."""
    if not isinstance(parameter.sharding, NamedSharding):
        raise TypeError(f"parameters of several processes need a NamedSharding, not {parameter.sharding}")
    everywhere = NamedSharding(parameter.sharding.mesh, PartitionSpec())
    if layer is None:
        return jax.device_put(parameter, everywhere)
    return _take_layer(everywhere)(parameter, layer)


@functools.cache
def _take_layer(sharding: NamedSharding) -> Callable[[jax.Array, int], jax.Array]:
    def take(parameter: jax.Array, layer: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(parameter, layer, axis=0, keepdims=False)

    return jax.jit(take, out_shardings=sharding)


def _to_hub(ours: np.ndarray, where: HubTensor, dtype: DTypeLike | None) -> np.ndarray:
    """A tensor as the hub holds it, contiguous, from the array of ours (without its axis of layers)."""
    if dtype is not None:
        ours = ours.astype(dtype, copy=False)
    split = ours.transpose(np.argsort(where.to_ours))
    if split.flags.c_contiguous:
        return split.reshape(where.shape)
    # As plain integers, which numpy copies faster than bfloat16.
    bits = split.view(f"u{split.itemsize}")
    copy = np.empty(bits.shape, bits.dtype)
    for start in range(0, bits.shape[-1], _TILE):
        copy[..., start : start + _TILE] = bits[..., start : start + _TILE]
    return copy.view(ours.dtype).reshape(where.shape)


def _publish(folder: AnyPath, files: Sequence[str], index: JsonView | None, config: JsonView) -> None:
    """Give the files their names; until the last one has its own, the folder is no checkpoint."""
    end = "" if is_remote(folder) else UNFINISHED
    absent = [name for name in files if not (folder / (name + end)).exists()]
    if absent:
        raise CheckpointError(
            f"{folder} lacks {absent[0]}, which another process wrote: give a folder that all processes share"
        )
    for name in ("config.json", INDEX):
        (folder / name).unlink(missing_ok=True)
    for name in files if end else ():
        os.replace(folder / (name + UNFINISHED), folder / name)
    for file in (*folder.glob("model-*-of-*.safetensors"), folder / WEIGHTS, *folder.glob("*" + UNFINISHED)):
        if file.name not in files:
            file.unlink(missing_ok=True)  # of an earlier checkpoint, or of a writing that was cut off
    if index is not None:
        write_json(folder / INDEX, index)
    write_json(folder / "config.json", config)


def _meet(where: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"save_hf: {where}")
