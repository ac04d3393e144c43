"""Whole files in buckets and on disks: read in part, copied, listed and removed in one way.

A store has no rename, and an object appears when its last byte is there: so what is written in one piece is there
whole or not at all, and a folder is finished by the file that is written last.
"""

import contextlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import fsspec

from swjax.plain import Json
from swjax.storage.paths import AnyPath, StorageError

_T = TypeVar("_T")

TRIES = 6
"""How often what a store refuses is tried, at growing intervals: for half a minute."""

_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
# A store says 404 of an upload that it has finished when its answer was lost on the way.
_FINAL_OF_WRITES = (PermissionError,)


def is_remote(path: object) -> bool:
    """Whether a path is one in a bucket."""
    return not isinstance(path, str | Path) and "://" in os.fspath(path)  # type: ignore[call-overload]


def file_system(path: AnyPath) -> fsspec.AbstractFileSystem:
    """What fsspec opens a path with."""
    return fsspec.filesystem(os.fspath(path).partition("://")[0] if is_remote(path) else "file")


def retried(action: Callable[[], _T], what: str, *, final: tuple[type[Exception], ...] = _FINAL) -> _T:
    """Calls a function until it succeeds, with growing pauses between: for what a busy store or a network refuses.

    Args:
        action: may be called several times.
        what: it does, for the message.
        final: what cannot be otherwise the next time.

    Raises:
        OSError: one of `final`, as it was raised.
        StorageError: the last try failed as well.
    """
    for number in range(1, TRIES + 1):
        try:
            return action()
        except final:
            raise
        except Exception as error:  # of the store's client or the network: of many kinds
            if number == TRIES:
                raise StorageError(f"{what} failed {TRIES} times: {type(error).__name__}: {error}") from error
        time.sleep(2 ** (number - 2) * (0.5 + random.random()))
    raise AssertionError("unreachable")


def file_size(path: AnyPath) -> int:
    """Bytes of a file."""
    return path.stat().st_size if isinstance(path, Path) else path.stat().length


def read_range(path: AnyPath, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of a file.

    Args:
        path: of the file, on disk or in a bucket.
        start, stop: the first byte, and the one behind the last.

    Raises:
        OSError: a file on disk cannot be read or ends before `stop`, or one in a bucket is not there.
        StorageError: the store does not give them, or not all.
    """
    if isinstance(path, Path):
        with path.open("rb") as file:
            file.seek(start)
            found = file.read(stop - start)
        if len(found) != stop - start:
            raise OSError(f"{path} ends {stop - start - len(found)} bytes before byte {stop}; copy it again")
        return found

    def read() -> bytes:
        found = file_system(path).cat_file(os.fspath(path), start=start, end=stop)
        if len(found) != stop - start:
            raise OSError(f"{len(found)} of {stop - start} bytes came")
        return found

    return b"" if start == stop else retried(read, f"reading {path}")


def list_files(folder: AnyPath) -> dict[str, int]:
    """All files below a folder: path relative to it -> bytes; {} where there is none."""
    if isinstance(folder, Path):
        return {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    return {name: info["size"] for name, info in list_objects(folder).items()}


def list_objects(folder: AnyPath) -> dict[str, Json]:
    """All files below a folder in a bucket: path relative to it -> what fsspec knows of each."""
    url = os.fspath(folder)
    found = retried(lambda: file_system(folder).find(url, detail=True), f"listing {url}")
    prefix = url.partition("://")[2].rstrip("/") + "/"
    names = {name.rpartition("://")[2].removeprefix(prefix): info for name, info in found.items()}
    # Some clients write an empty object for a folder, with a slash at the end of its name.
    return {name: info for name, info in names.items() if info["type"] == "file" and not name.endswith("/")}


def check_writable(path: AnyPath) -> None:
    """Refuses to write where each file would be a commit of its own.

    Raises:
        StorageError: it is a data set of the Hugging Face Hub.
    """
    if is_remote(path) and os.fspath(path).startswith("hf://"):
        raise StorageError(
            f"{path} is on the Hugging Face Hub, which is read alone here; write elsewhere and upload it"
        )


def upload(file: Path, path: AnyPath) -> None:
    """Copies a file from disk to a path in a bucket, where it appears as a whole.

    Raises:
        StorageError: the store does not take it.
    """
    check_writable(path)

    def put() -> None:
        file_system(path).put_file(str(file), os.fspath(path))
        if file_size(path) != file.stat().st_size:
            raise OSError(f"{file_size(path)} of {file.stat().st_size} bytes arrived")

    retried(put, f"writing {path}", final=_FINAL_OF_WRITES)


def write_object(path: AnyPath, content: bytes) -> None:
    """Writes a file in a bucket.

    Raises:
        StorageError: the store does not take it.
    """
    check_writable(path)
    url = os.fspath(path)
    retried(lambda: file_system(path).pipe_file(url, content), f"writing {url}", final=_FINAL_OF_WRITES)


def copy_file(source: AnyPath, target: AnyPath) -> None:
    """Copies a file between disks and buckets; on disk, it is whole under its name only at the end of the copy."""
    if not is_remote(source):
        upload(Path(source), target) if is_remote(target) else shutil.copyfile(source, target)
    elif is_remote(target):
        with tempfile.TemporaryDirectory(prefix="swjax-") as folder:
            copy_file(source, Path(folder) / source.name)
            upload(Path(folder) / source.name, target)
    else:
        fetch(source, Path(target), file_size(source))


def fetch(path: AnyPath, file: Path, size: int) -> None:
    """Copies a file of known size from a bucket to disk.

    Args:
        path: in the bucket.
        file: on disk.
        size: bytes that it must have.

    Raises:
        StorageError: the store does not give it, or not all of it.
    """

    def get() -> None:
        file_system(path).get_file(os.fspath(path), str(file))
        if file.stat().st_size != size:
            raise OSError(f"{file.stat().st_size} of {size} bytes came")

    retried(get, f"reading {path}")


def make_folder(folder: AnyPath) -> None:
    """Makes a folder where there are such; in a bucket, files bring their own.

    Raises:
        StorageError: nothing can be written there (`check_writable`).
    """
    check_writable(folder)
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def writing_folder(folder: AnyPath) -> Iterator[Path]:
    """A folder on disk to write to, for what writes to disk alone: itself, or one that is uploaded at the end."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="swjax-") as staged:
        yield Path(staged)
        for name in list_files(Path(staged)):
            upload(Path(staged) / name, folder / name)


@contextlib.contextmanager
def writing_file(path: AnyPath) -> Iterator[Path]:
    """A path on disk to write a file to: its own, or one that is uploaded at the end, unless writing it failed."""
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="swjax-") as staged:
        yield Path(staged) / path.name
        upload(Path(staged) / path.name, path)


def kvstore(folder: AnyPath) -> str | dict[str, str]:
    """The folder as TensorStore names it; for S3 with the endpoint and region that the environment names."""
    if isinstance(folder, Path):
        return f"file://{folder.absolute()}/"
    scheme, _, rest = os.fspath(folder).partition("://")
    if scheme != "s3":
        return f"{scheme}://{rest}/"
    bucket, _, path = rest.partition("/")
    named = {"endpoint": os.environ.get("AWS_ENDPOINT_URL"), "aws_region": os.environ.get("AWS_DEFAULT_REGION")}
    return {"driver": "s3", "bucket": bucket, "path": f"{path}/"} | {key: name for key, name in named.items() if name}


def remove_folder(folder: AnyPath) -> None:
    """Removes a folder and what is in it, as far as that can be done."""
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
    elif list_files(folder):
        retried(lambda: file_system(folder).rm(os.fspath(folder), recursive=True), f"removing {folder}")
