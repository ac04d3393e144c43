"""The safetensors files of a Hugging Face folder, opened and checked, and blocks of our parameters read out of them.

Only the bytes of a block are read, by `pread`: a file of several gigabytes does not pass through memory for one slice,
and pages of it do not count as memory of the process.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from swjax.conversion.errors import CheckpointError
from swjax.conversion.stored import Block, StoredArray
from swjax.models.qwen2_5_vl.weights import HubTensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

Files = Mapping[str, Any]
"""Tensor name -> the opened safetensors file that holds it."""


def open_files(folder: Path) -> Files:
    """Opens the safetensors files of a folder: those that the index names, else the single one.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    index = folder / INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index} is damaged: {error}; fetch the checkpoint again") from error
    else:
        names = [WEIGHTS]
    files: dict[str, Any] = {}
    for name in names:
        if not (folder / name).exists():
            raise CheckpointError(f"{folder / name} is missing; fetch the checkpoint again")
        try:
            opened = safe_open(folder / name, framework="numpy", backend="pread")
            files.update(dict.fromkeys(opened.keys(), opened))
        except SafetensorError as error:
            raise CheckpointError(f"{folder / name} is damaged ({error}); fetch it again") from error
    if not files:
        raise CheckpointError(f"{folder}: the safetensors files hold no tensors")
    return files


def check_files(folder: Path, expected: Mapping[str, HubTensor], files: Files, *, tied: bool) -> None:
    """Compares the names and shapes of all tensors with those of a model.

    Args:
        folder: for messages.
        expected: from `hub_tensors`.
        files: from `open_files`.
        tied: whether the model's head is its embedding.

    Raises:
        CheckpointError: a tensor is missing, unexpected or mis-shaped.
    """
    missing = [name for name in expected if name not in files]
    # Some tied checkpoints carry the head a second time.
    unexpected = [name for name in files if name not in expected and not (tied and name == "lm_head.weight")]
    for what, names in (("lacks", missing), ("has unexpected", unexpected)):
        if names:
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            raise CheckpointError(f"{folder}: the checkpoint {what} {shown}; is config.json the one of these weights?")
    for name, where in expected.items():
        shape = tuple(files[name].get_slice(name).get_shape())
        if shape != where.shape:
            raise CheckpointError(f"{folder}: {name} has shape {shape}, but config.json makes it {where.shape}")


def stored_parameters(
    files: Files, tensors: Mapping[str, HubTensor], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, StoredArray]:
    """Our parameters, path -> array on disk, as the hub's tensors hold them.

    Args:
        files: from `open_files`.
        tensors: from `hub_tensors`.
        shapes: shape of each parameter by path.
    """
    names: dict[str, list[str]] = defaultdict(list)
    for name, where in tensors.items():
        names[where.path].append(name)  # layers in order
    return {path: _stored(files, tensors, names[path], shape) for path, shape in shapes.items()}


def _stored(
    files: Files, tensors: Mapping[str, HubTensor], names: Sequence[str], shape: tuple[int, ...]
) -> StoredArray:
    where = tensors[names[0]]
    # An empty slice: its dtype is the tensor's, and the file's own name for it need not be known.
    dtype = files[names[0]].get_slice(names[0])[0:0].dtype

    def read_one(name: str, block: Block) -> np.ndarray:
        return _read_block(files[name].get_slice(name), tensors[name], block)

    if where.layer is None:
        return StoredArray(shape, dtype, lambda block: read_one(names[0], block), rows=shape[0])

    def read(block: Block) -> np.ndarray:
        layers = [read_one(name, block[1:]) for name in names[block[0]]]
        return layers[0][None] if len(layers) == 1 else np.stack(layers)

    return StoredArray(shape, dtype, read, rows=1)


def _read_block(tensor: Any, where: HubTensor, block: Block) -> np.ndarray:
    """A block of one of our parameters (without its axis of layers), as a view of what was read.

    Args:
        tensor: a slice of safetensors.
        where: which of our axes its axes hold.
        block: slices along our axes.
    """
    wanted = [block[axis] for axis in np.argsort(where.to_ours)]  # along the split axes
    ranges, found, left = [], list(where.split_shape), list(wanted)
    axis = 0
    for size in where.shape:
        first, length = axis, 1
        while length < size and axis < len(found):
            length, axis = length * found[axis], axis + 1
        if length != size or axis == first:  # an axis of the convolution's kernel: read whole
            ranges.append(slice(0, size))
            continue
        inner = length // found[first]
        ranges.append(slice(wanted[first].start * inner, wanted[first].stop * inner))
        found[first] = wanted[first].stop - wanted[first].start
        left[first] = slice(0, found[first])
    read = tensor[tuple(ranges)] if ranges else tensor[:]
    return read.reshape(found)[tuple(left)].transpose(where.to_ours)
