"""The safetensors files of a Hugging Face folder, opened and checked, and blocks of our parameters read out of them.

Only the pages of a block are read: a file is mapped into memory for one tensor at a time and let go, so that a file of
several gigabytes neither passes through memory for one slice nor counts as memory of the process.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from swjax.hub.errors import CheckpointError
from swjax.models.stored import Block, StoredArray
from swjax.models.weights import EMBEDDING, HEAD, HubTensor, is_buffer
from swjax.notice import notify
from swjax.storage import AnyPath, StorageError, file_size, is_remote, read_range

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

Shape = tuple[int, ...]

READABLE = ("bfloat16", "float16", "float32")
"""Names of the dtypes of weights that can be read."""

# By the names that safetensors has for them.
_DTYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"},
    **{f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}

# Scales, zero points, code books: what bitsandbytes, GPTQ, AWQ, compressed-tensors and FP8 keep beside packed weights.
_QUANTIZED = re.compile(
    r"absmax|quant_map|quant_state|(qweight|qzeros|scales|g_idx|SCB|weight_packed)$|_scale(_inv)?$|_zero_point$"
)

# What PEFT keeps beside weights that an adapter stands beside.
_ADAPTED = re.compile(r"\.(lora_\w+|base_layer|modules_to_save|original_module)\.")

_TAKE_FLOATS = f"take the checkpoint in {', '.join(READABLE)}, which is not quantized"

# What is not stacked, as the embedding, is best read in pieces of this size.
_PIECE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a safetensors file: the file, and the tensor's name, shape and dtype's name in it."""

    file: AnyPath
    name: str
    shape: Shape
    dtype: str
    start: int = -1  # of its bytes in a file in a bucket

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """A part of it, one slice an axis; of a file in a bucket, the rows of the first axis that it lies in come."""
        if self.start >= 0:
            first, last = (index[0].start, index[0].stop) if index else (0, 1)
            row = np.dtype(self.dtype).itemsize * math.prod(self.shape[1:])
            content = read_range(self.file, self.start + first * row, self.start + last * row)
            rows = np.frombuffer(content, self.dtype).reshape((last - first, *self.shape[1:]) if index else ())
            return rows[(slice(None), *index[1:])] if index else rows
        with safe_open(self.file, framework="numpy") as opened:
            return opened.get_slice(self.name)[index]


Files = Mapping[str, FileTensor]
"""Tensors by the hub's names."""


def find_tensors(folder: AnyPath, hub_name: Callable[[str], str]) -> Files:
    """Finds the tensors in a folder's safetensors files, by the hub's names (`WeightTable.hub_name` of the family).

    As transformers does, it takes the single file where there is one, else those that the index names. Where the index
    is missing or of other files, it takes a set of shards that is complete, with a notice.

    Raises:
        CheckpointError: a file is missing or damaged, or two tensors have one name.
    """
    files: dict[str, FileTensor] = {}
    names, weight_map = _choose_files(folder)
    for name in names:
        if not (folder / name).exists():
            raise CheckpointError(f"{folder / name} is missing; {_other_formats(folder)}fetch the checkpoint again")
        try:
            found = _tensors_of(folder / name)
        except StorageError:
            raise
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder / name} is damaged ({error}); fetch it again") from error
        for tensor in found:
            if is_buffer(tensor.name) or weight_map.get(tensor.name, name) != name:
                continue
            other = files.setdefault(hub_name(tensor.name), tensor)
            if other is not tensor:
                raise CheckpointError(
                    f"{folder}: {other.name} in {other.file.name} and {tensor.name} in {name} are the same weights; "
                    "take one of them away"
                )
    if not files:
        raise CheckpointError(f"{folder}: the safetensors files hold no tensors")
    return files


def _choose_files(folder: AnyPath) -> tuple[Sequence[str], Mapping[str, str]]:
    """The names of the files to read, and which of them the index says holds a tensor."""
    index = folder / INDEX
    if (folder / WEIGHTS).exists():
        if index.exists():
            notify(f"{folder}: reading {WEIGHTS}, as transformers does, and not the files that {INDEX} names")
        return [WEIGHTS], {}
    shards = _complete_shards(folder)
    if not index.exists():
        if shards:
            notify(f"{folder} has no {INDEX}; reading its {len(shards)} files {shards[0]} to {shards[-1]}")
        return shards or [WEIGHTS], {}
    weight_map = _read_index(index)
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (folder / name).exists()]
    if missing and shards:
        notify(f"{index} names {missing[0]}, which is not there; reading {shards[0]} to {shards[-1]} instead")
        return shards, {}
    return names, weight_map


def _read_index(index: AnyPath) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        if not all(isinstance(name, str) and Path(name).name == name != "" for name in weight_map.values()):
            raise ValueError("weight_map must name files of this folder")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is damaged: {error}; fetch the checkpoint again") from error
    return weight_map


def _complete_shards(folder: AnyPath) -> list[str]:
    """The shards of a checkpoint of which none is missing; [] where there is no such set, or more than one."""
    sets: dict[int, list[str]] = defaultdict(list)
    for name in sorted(file.name for file in folder.glob("model-*-of-*.safetensors")):
        if found := re.fullmatch(r"model-(\d{5})-of-(\d{5})\.safetensors", name):
            sets[int(found[2])].append(name)
    whole = [names for count, names in sets.items() if len(names) == count and int(names[-1][6:11]) == count]
    return whole[0] if len(whole) == 1 else []


def _other_formats(folder: AnyPath) -> str:
    others = [file.name for pattern in ("pytorch_model*.bin", "*.gguf", "*.pth") for file in folder.glob(pattern)]
    return f"{sorted(others)[0]} cannot be read, save the model as safetensors or " if others else ""


def _tensors_of(file: AnyPath) -> list[FileTensor]:
    if is_remote(file):
        return _tensors_in_bucket(file)
    with safe_open(file, framework="numpy") as opened:
        found = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        return [
            FileTensor(file, name, tuple(tensor.get_shape()), _DTYPES.get(tensor.get_dtype(), tensor.get_dtype()))
            for name, tensor in found.items()
        ]


def _tensors_in_bucket(file: AnyPath) -> list[FileTensor]:
    """What the header of a safetensors file says: 8 bytes of its length, then JSON."""
    size = file_size(file)
    length = int.from_bytes(read_range(file, 0, min(8, size)), "little")
    if not 2 <= length <= size - 8:
        raise SafetensorError(f"a header of {length} bytes in a file of {size}")
    header = json.loads(read_range(file, 8, 8 + length))
    header.pop("__metadata__", None)
    found = []
    for name, about in header.items():
        dtype, shape, (start, stop) = _DTYPES.get(about["dtype"], about["dtype"]), about["shape"], about["data_offsets"]
        if dtype in READABLE and stop - start != np.dtype(dtype).itemsize * math.prod(shape):
            raise SafetensorError(f"{name} of shape {shape} takes {stop - start} bytes")
        if 8 + length + stop > size:
            raise SafetensorError(f"{name} goes beyond the end of the file")
        found.append(FileTensor(file, name, tuple(shape), dtype, 8 + length + start))
    return found


def has_own_head(folder: AnyPath, files: Files) -> bool:
    """Whether the weights hold a head that is not the embedding; it reads both, piece by piece, if there is a head.

    Args:
        folder: for messages.
        files: from `find_tensors`.

    Raises:
        CheckpointError: the head or the embedding is no matrix of floating-point numbers.
    """
    head, embedding = files.get(HEAD), files.get(EMBEDDING)
    if head is None or embedding is None:
        return False
    _refuse_dtypes(folder, (head, embedding))
    if head.shape != embedding.shape or len(head.shape) != 2:
        return True
    length, width = head.shape
    rows = max(1, _PIECE_BYTES // (4 * max(1, width)))
    pieces = [(slice(start, min(start + rows, length)), slice(0, width)) for start in range(0, length, rows)]
    return not all(
        np.array_equal(head.read(piece).astype(np.float32), embedding.read(piece).astype(np.float32), equal_nan=True)
        for piece in pieces
    )


def check_files(folder: AnyPath, expected: Mapping[str, HubTensor], files: Files, *, tied: bool) -> None:
    """Compares the names, shapes and dtypes of all tensors with those of a model.

    Args:
        folder: for messages.
        expected: from `hub_tensors`.
        files: from `find_tensors`.
        tied: whether the model's head is its embedding.

    Raises:
        CheckpointError: a tensor is missing, unexpected, mis-shaped or of a dtype that is no number to compute with.
    """
    _refuse_dtypes(folder, [files[name] for name in expected if name in files])
    missing = [name for name in expected if name not in files]
    # Some tied checkpoints carry the head a second time.
    unexpected = [tensor.name for name, tensor in files.items() if name not in expected and not (tied and name == HEAD)]
    for what, names in (("has unexpected", unexpected), ("lacks", missing)):
        if names:
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            raise CheckpointError(f"{folder}: the checkpoint {what} {shown}; {_explain(names)}")
    for name, where in expected.items():
        if files[name].shape != where.shape:
            found = f"{files[name].name} has shape {files[name].shape}"
            raise CheckpointError(f"{folder}: {found}, but config.json makes it {where.shape}")


def _explain(names: Sequence[str]) -> str:
    """The likely reason of tensors that are too many or too few."""
    if any(_ADAPTED.search(name) for name in names):
        return "these are of an adapter that is not merged; merge it (PEFT's merge_and_unload) and save the model again"
    if any(_QUANTIZED.search(name) for name in names):
        return f"these are of quantized weights; {_TAKE_FLOATS}"
    if list(names) == [HEAD]:
        return "where the embedding is the head, config.json says so with tie_word_embeddings"
    return "is config.json the one of these weights?"


def _refuse_dtypes(folder: AnyPath, tensors: Iterable[FileTensor]) -> None:
    unknown = {tensor.dtype: tensor.name for tensor in tensors if tensor.dtype not in READABLE}
    if unknown:
        dtypes = ", ".join(sorted(unknown))
        raise CheckpointError(f"{folder} holds weights in {dtypes} ({next(iter(unknown.values()))}); {_TAKE_FLOATS}")


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
    dtype = np.dtype(files[names[0]].dtype)

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
