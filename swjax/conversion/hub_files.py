"""The safetensors files of a Hugging Face folder, opened and checked, and blocks of our parameters read out of them.

Only the pages of a block are read: a file is mapped into memory for one tensor at a time and let go, so that a file of
several gigabytes neither passes through memory for one slice nor counts as memory of the process.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from swjax.conversion.errors import CheckpointError
from swjax.conversion.stored import Block, StoredArray
from swjax.models.qwen2_5_vl.weights import HubTensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

Shape = tuple[int, ...]

# What is not stacked, as the embedding, is best read in pieces of this size.
_PIECE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a safetensors file: the file, and the tensor's name, shape and dtype in it."""

    file: Path
    name: str
    shape: Shape
    dtype: np.dtype

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """A part of it, one slice an axis."""
        with safe_open(self.file, framework="numpy") as opened:
            return opened.get_slice(self.name)[index]


Files = Mapping[str, FileTensor]
"""Tensors by name."""


def find_tensors(folder: Path) -> Files:
    """Finds the tensors in a folder's safetensors files: those that the index names, else the single one.

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
    files: dict[str, FileTensor] = {}
    for name in names:
        if not (folder / name).exists():
            raise CheckpointError(f"{folder / name} is missing; fetch the checkpoint again")
        try:
            files.update(_tensors_of(folder / name))
        except SafetensorError as error:
            raise CheckpointError(f"{folder / name} is damaged ({error}); fetch it again") from error
    if not files:
        raise CheckpointError(f"{folder}: the safetensors files hold no tensors")
    return files


def _tensors_of(file: Path) -> dict[str, FileTensor]:
    with safe_open(file, framework="numpy") as opened:
        found = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        return {
            # The dtype is that of an empty slice, so that the file's own names of dtypes need not be known.
            name: FileTensor(file, name, tuple(tensor.get_shape()), tensor[0:0].dtype)
            for name, tensor in found.items()
        }


def check_files(folder: Path, expected: Mapping[str, HubTensor], files: Files, *, tied: bool) -> None:
    """Compares the names and shapes of all tensors with those of a model.

    Args:
        folder: for messages.
        expected: from `hub_tensors`.
        files: from `find_tensors`.
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
        if files[name].shape != where.shape:
            found = files[name].shape
            raise CheckpointError(f"{folder}: {name} has shape {found}, but config.json makes it {where.shape}")


def stored_parameters(
    files: Files, tensors: Mapping[str, HubTensor], shapes: Mapping[str, Shape]
) -> dict[str, StoredArray]:
    """Our parameters, path -> array on disk, as the hub's tensors hold them.

    Args:
        files: from `find_tensors`.
        tensors: from `hub_tensors`.
        shapes: shape of each parameter by path.
    """
    names: dict[str, list[str]] = defaultdict(list)
    for name, where in tensors.items():
        names[where.path].append(name)  # layers in order
    return {path: _stored(files, tensors, names[path], shape) for path, shape in shapes.items()}


def _stored(files: Files, tensors: Mapping[str, HubTensor], names: Sequence[str], shape: Shape) -> StoredArray:
    where = tensors[names[0]]
    dtype = files[names[0]].dtype

    def read_one(name: str, block: Block) -> np.ndarray:
        return _read_block(files[name], tensors[name], block)

    if where.layer is None:
        rows = max(1, _PIECE_BYTES * shape[0] // (dtype.itemsize * math.prod(shape)))
        return StoredArray(shape, dtype, lambda block: read_one(names[0], block), rows=min(rows, shape[0]))

    def read(block: Block) -> np.ndarray:
        layers = [read_one(name, block[1:]) for name in names[block[0]]]
        return layers[0][None] if len(layers) == 1 else np.stack(layers)

    return StoredArray(shape, dtype, read, rows=1)


def _read_block(tensor: FileTensor, where: HubTensor, block: Block) -> np.ndarray:
    """A block of one of our parameters (without its axis of layers), as a view of what was read.

    Args:
        tensor: what to read.
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
    return tensor.read(tuple(ranges)).reshape(found)[tuple(left)].transpose(where.to_ours)
