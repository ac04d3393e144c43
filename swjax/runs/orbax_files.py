"""The arrays of an Orbax checkpoint, opened and read block by block.

Orbax restores a tree as a whole; what it wrote is Zarr in an OCDBT database, of which TensorStore reads any block.
"""

import contextlib
import functools
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from swjax.hub.errors import CheckpointError
from swjax.models.stored import Block, StoredArray
from swjax.storage import AnyPath, is_remote, kvstore, local_folder, touch

# Orbax's own record of the tree: a folder without it was not written to its end, or lost a part.
_RECORD = "_METADATA"

MARKER = "commit_success.txt"
"""The file that makes a finished checkpoint of a folder in a bucket, as Orbax has it."""

# The two ways in which TensorStore's messages name a tensor; other paths in them are of files and begin with a slash.
_TENSOR_IN_ERROR = re.compile(r"""Error reading "(.+?)/[^/"]*" in|'path': '([^/'][^']*)/'""")


def is_staged(folder: AnyPath) -> bool:
    """Whether checkpoints in a folder are written on disk and uploaded, as Orbax does not write to its store."""
    return is_remote(folder) and not str(folder).startswith("gs://")


def open_arrays(folder: AnyPath) -> dict[str, StoredArray]:
    """Opens the arrays that Orbax saved from a flat dict: key -> array.

    Args:
        folder: what Orbax wrote for one item of a checkpoint.

    Raises:
        CheckpointError: the folder is damaged. Reading from the arrays raises it too.
    """
    with reading(folder):
        (folder / _RECORD).stat()
        # TensorStore has no driver for Azure: there, what it reads is a copy.
        copy = local_folder(folder) if str(folder).startswith("az://") else None
        base = {"driver": "ocdbt", "base": kvstore(copy or folder)}
        keys = [key.decode() for key in ts.KvStore.open(base).result().list().result()]
        names = sorted({key.rpartition("/")[0] for key in keys})
        opened = {
            name: ts.open(
                # A lost chunk is an error, and not zeros.
                {"driver": "zarr", "kvstore": base | {"path": f"{name}/"}, "fill_missing_data_reads": False},
                open=True,
                read=True,
            )
            for name in names
        }
        return {name: _stored(folder, copy, future.result()) for name, future in opened.items()}


@contextlib.contextmanager
def reading(folder: AnyPath) -> Iterator[None]:
    """Turns whatever Orbax or TensorStore raises while it reads into an error that names the folder and the tensor.

    At the first failure Orbax gives up its other reads and closes their event loop; each would print a traceback when
    it ends or is collected, which nobody can catch. These, and no others, are kept quiet from the first reading on: a
    read may end before the failure is known here.
    """
    if getattr(sys.unraisablehook, "func", None) is not _pass_on:
        sys.unraisablehook = functools.partial(_pass_on, sys.unraisablehook)
        logging.getLogger("asyncio").addFilter(_is_no_stray_read)
    try:
        yield
    except Exception as error:  # for damaged files there is no one kind of error
        raise CheckpointError(_describe_failure(folder, error)) from None


def _stored(folder: AnyPath, copy: Path | None, array: Any) -> StoredArray:
    def read(block: Block) -> np.ndarray:
        with reading(folder):
            if copy:
                touch(copy)
            return array[block].read().result()

    rows = array.chunk_layout.read_chunk.shape[0] if array.shape else 1
    return StoredArray(tuple(array.shape), array.dtype.numpy_dtype, read, rows=rows)


def _pass_on(hook: Callable[[Any], object], failure: Any) -> None:
    if not (isinstance(failure.exc_value, RuntimeError) and str(failure.exc_value) == "Event loop is closed"):
        hook(failure)


def _is_no_stray_read(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return "tensorstore_spec" not in str(error)


def _describe_failure(folder: AnyPath, error: Exception) -> str:
    tensor = _TENSOR_IN_ERROR.search(str(error))
    where = f"tensor {tensor[1] or tensor[2]}" if tensor else "the checkpoint"
    reason = str(error.__cause__ or error).split(" [tensorstore_spec")[0].strip()[:300] or repr(error)
    return (
        f"{folder}: {where} cannot be read; where a file is damaged or missing, delete {folder.parent} and the "
        f"checkpoint before it is used ({reason})"
    )
