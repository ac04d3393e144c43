"""Copies on disk of what is in buckets, for readers that need a file: videos, record shards, tokenizers.

    SWJAX_CACHE      its folder; by default swjax-cache-UID in the folder for temporary files
    SWJAX_CACHE_GB   how large it may become; 32 by default

All processes of a machine share it. A copy is fetched beside its place and moved there when it is whole, under a name
made of its URL, size and version: a file that was changed is another one. What was used longest ago goes first.
"""

import fnmatch
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from swjax.plain import JsonView
from swjax.storage.files import fetch, file_system, is_remote, list_objects, retried
from swjax.storage.paths import AnyPath, StorageError

# What was used in the last seconds may be about to be opened.
_IN_USE_S = 60

_known: dict[str, Path] = {}


def local_file(path: AnyPath) -> Path:
    """The file itself if it is on disk, else a copy of it.

    Raises:
        FileNotFoundError: it is not in its bucket.
        StorageError: the store does not give it.
    """
    if not is_remote(path):
        return Path(path)
    url = os.fspath(path)
    if (known := _known.get(url)) is None or not touch(known.parent):
        info = retried(lambda: file_system(path).info(url), f"reading {url}")
        if info["type"] != "file":
            raise FileNotFoundError(f"{url} is no file")
        known = _known[url] = _fetch_all(url, {path.name: info}, path.parent) / path.name
    return known


def local_folder(path: AnyPath, patterns: Sequence[str] | None = None) -> Path:
    """The folder itself if it is on disk, else a copy of it, or of those of its files that match a pattern.

    Args:
        path: the folder.
        patterns: such as `*.json`, or `more/*.json` for files of a folder in it; None for all.

    Raises:
        StorageError: the store does not give them.
    """
    if not is_remote(path):
        return Path(path)
    wanted = {
        name: info
        for name, info in list_objects(path).items()
        if patterns is None or any(fnmatch.fnmatch(name, one) and name.count("/") == one.count("/") for one in patterns)
    }
    return _fetch_all(os.fspath(path), wanted, path)


def cache_folder() -> Path:
    """Where the copies are."""
    named = os.environ.get("SWJAX_CACHE")
    return Path(named) if named else Path(tempfile.gettempdir()) / f"swjax-cache-{os.getuid()}"


def open_cache_folder() -> Path:
    """Where the copies are, made if it is not there.

    Raises:
        StorageError: it belongs to another user.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():  # whoever made it could change what is read from it
        raise StorageError(f"{folder} belongs to another user; name a folder of your own with SWJAX_CACHE")
    return folder


def local_lock(path: AnyPath) -> Path:
    """A file of this machine that can be locked for a path in a bucket, which cannot."""
    return open_cache_folder() / f"{hashlib.sha256(os.fspath(path).encode()).hexdigest()[:40]}-lock"


def cache_bytes() -> float:
    """How large the copies may be together."""
    text = os.environ.get("SWJAX_CACHE_GB", "32")
    try:
        return float(text) * 1e9
    except ValueError:
        raise StorageError(f"SWJAX_CACHE_GB is {text!r}; give a number of gigabytes") from None


def _fetch_all(url: str, files: Mapping[str, JsonView], folder: AnyPath) -> Path:
    """The entry that holds copies of files of a folder, by their paths relative to it."""
    described = [(name, info["size"], _version(info)) for name, info in sorted(files.items())]
    size = sum(info["size"] for info in files.values())
    entry = cache_folder() / f"{hashlib.sha256(repr((url, described)).encode()).hexdigest()[:40]}-{size}"
    if touch(entry):
        return entry
    open_cache_folder()
    _make_room(size)
    partial = Path(tempfile.mkdtemp(prefix=f"{entry.name}.partial-", dir=cache_folder()))
    try:
        for name, info in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            fetch(folder / name, partial / name, info["size"])
        try:
            partial.rename(entry)
        except OSError:
            if not entry.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return entry


def _version(info: JsonView) -> str:
    return str(
        next(
            (info[key] for key in ("generation", "etag", "ETag", "mtime", "last_modified", "blob_id") if key in info),
            "",
        )
    )


def touch(entry: Path) -> bool:
    """Note that a copy is used, as what was used longest ago goes first; whether it is still there."""
    try:
        os.utime(entry)
    except FileNotFoundError:
        return False
    return True


def _make_room(size: int) -> None:
    """Removes what was used longest ago until so many bytes more fit, and what a killed process left half-fetched."""
    entries, bound = [], cache_bytes()
    for entry in os.scandir(cache_folder()):
        name, _, partial = entry.name.partition(".")
        bytes_text = name.rpartition("-")[2]
        if not bytes_text.isdecimal():
            continue
        try:
            used = entry.stat().st_mtime
        except FileNotFoundError:
            continue
        entries.append((used, int(bytes_text), bool(partial), Path(entry.path)))
    now, kept = time.time(), sum(taken for _, taken, _, _ in entries)
    for used, taken, is_partial, path in sorted(entries, key=lambda entry: entry[0]):
        is_left = is_partial and now - used > 24 * 3600
        if is_left or (kept + size > bound and not is_partial and now - used > _IN_USE_S):
            shutil.rmtree(path, ignore_errors=True)
            kept -= taken
