"""Names of files and folders: paths on disk, and `gs://`, `s3://`, `az://` and `hf://datasets/` for what is in buckets.

A URL is never a folder, but pathlib makes one of it without a word: `gs:/bucket/run` under the current folder. So
whatever takes a path from a user makes it with `as_path`.
"""

import functools
import importlib.util
import os
import re
from pathlib import Path
from typing import NamedTuple, TypeAlias

import fsspec
from etils import epath

AnyPath: TypeAlias = Path | epath.Path
"""A path on disk, or one in a bucket, with the same methods as far as epath has them."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(.*)", re.DOTALL)  # one slash: pathlib takes the other away


class StorageError(ValueError):
    """A bucket cannot be used: no such scheme, a package or credentials are missing, or it does not answer."""


class _Store(NamedTuple):
    """How a store is reached: the module that fsspec needs, what to install, and where credentials come from."""

    module: str
    install: str
    credentials: str


STORES = {
    "gs": _Store("gcsfs", "pip install 'swjax[gcs]'", "gcloud auth application-default login"),
    "s3": _Store("s3fs", "pip install 'swjax[s3]'", "aws configure, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    "az": _Store(
        "adlfs",
        "pip install 'swjax[azure]'",
        "AZURE_STORAGE_ACCOUNT_NAME and az login or AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_CONNECTION_STRING",
    ),
    "hf": _Store("huggingface_hub", "pip install huggingface_hub", "hf auth login"),
}
"""What a URL of a store begins with -> how the store is reached."""

_OTHER_NAMES = {"gcs": "gs", "s3a": "s3", "s3n": "s3", "abfs": "az", "abfss": "az", "wasbs": "az"}


def as_path(name: str | os.PathLike[str]) -> AnyPath:
    """The path of a name that a user gave.

    Args:
        name: a path, or a URL of a store; one that pathlib has taken a slash from is understood.

    Raises:
        StorageError: it is a URL that cannot be opened (`refused_scheme`), or the store's package is not installed, or
            has no account.
    """
    text = os.fspath(name)
    found = _SCHEME.match(text)
    if not found:
        return Path(text)
    if refused := refused_scheme(text):
        raise StorageError(refused)
    scheme = found[1].lower()
    store = STORES[scheme]
    if importlib.util.find_spec(store.module) is None:
        raise StorageError(f"{scheme}:// needs {store.module}, which is not installed: {store.install}")
    _set_up()
    if scheme == "az":
        _check_account()
    return epath.Path(f"{scheme}://{found[2].lstrip('/')}")


def absolute(path: AnyPath) -> AnyPath:
    """The path from the root of its disk or bucket."""
    return path.absolute() if isinstance(path, Path) else path


def resolved(path: AnyPath) -> AnyPath:
    """The path from the root of its disk, symbolic links followed, or of its bucket."""
    return path.resolve() if isinstance(path, Path) else path


def refused_scheme(path: str | os.PathLike[str]) -> str:
    """What to do instead of using a path with a scheme that is no store's; '' if the path can be used."""
    found = _SCHEME.match(os.fspath(path))
    if not found:
        return ""
    scheme, rest = found[1].lower(), found[2].lstrip("/")
    if scheme == "file":
        instead = f"give the path itself, /{rest.removeprefix('localhost/')}"
    elif scheme == "hf" and not rest.startswith("datasets/"):
        instead = f"give the Hub id itself, {rest}"
    elif scheme in STORES:
        return "" if rest else f"{scheme}:// names no bucket; write {scheme}://BUCKET/FOLDER"
    elif scheme in _OTHER_NAMES:
        instead = f"write {_OTHER_NAMES[scheme]}://BUCKET/FOLDER"
    else:
        instead = "download it, and give the file or folder"
    return f"{scheme}://{rest} is a URL that swjax does not open; {instead}"


def check_access(path: AnyPath) -> None:
    """Makes sure that the bucket of a path answers, before a long run begins; does nothing for a path on disk.

    Raises:
        StorageError: the bucket is not there, or may not be used, or the network does not reach it.
    """
    if isinstance(path, Path):
        return
    scheme, _, rest = os.fspath(path).partition("://")
    bucket = rest.partition("/")[0]
    try:
        fsspec.filesystem(scheme).ls(bucket if scheme != "hf" else rest, detail=False)
    except FileNotFoundError:
        raise StorageError(f"{scheme}://{bucket} is not there, or may not be listed; check the bucket's name") from None
    except Exception as error:  # of the store's client, the network or the credentials: of many kinds
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
        credentials = STORES[scheme].credentials
        raise StorageError(f"{scheme}://{bucket} cannot be used ({reason}); for credentials, {credentials}") from error


def describe_failure(error: BaseException) -> str:
    """What to say of an error that the client of a store has raised after all its tries; '' for any other error."""
    client = type(error).__module__.partition(".")[0]
    if client not in ("gcsfs", "google", "s3fs", "botocore", "aiobotocore", "aiohttp", "adlfs", "azure"):
        return ""
    reason = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
    return f"the store failed ({reason}); when it answers again, the same command resumes"


@functools.cache
def _set_up() -> None:
    """Settings of fsspec and epath for what is written by several programs; a user's own (fsspec's config) win."""
    # epath would take TensorFlow where that is installed, which has other credentials and no S3.
    os.environ.setdefault("EPATH_USE_TF", "false")
    for protocol in ("gs", "gcs", "s3", "az", "abfs"):
        # Orbax and other processes write beside us: a listing that was kept is a wrong one.
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)


@functools.cache
def _check_account() -> None:
    """Refuses Azure without an account: where the first file is opened, it would be an error of no kind."""
    try:
        fsspec.filesystem("az")
    except ValueError as error:
        raise StorageError(f"az:// cannot be used ({error}); for credentials, {STORES['az'].credentials}") from error
