"""Data sets as other programs keep them: one file a format, one row of `FORMATS` each, found by looking."""

from pathlib import Path

from swjax.data.formats.dense import DENSE
from swjax.data.formats.format import Format, count_fields, find_format, read_source
from swjax.data.formats.livecc import LIVECC
from swjax.data.formats.manifest import MANIFEST
from swjax.data.formats.records import OTHER_SUFFIXES
from swjax.data.formats.sharegpt import SHAREGPT
from swjax.data.formats.subtitles import SUBTITLES
from swjax.data.formats.swift import SWIFT
from swjax.data.formats.webdataset import WEBDATASET
from swjax.data.manifest import Manifest, ManifestError, read_manifest
from swjax.storage import AnyPath, is_remote

AUTO = "auto"

__all__ = ["AUTO", "FORMATS", "Format", "choose_format", "count_fields", "read_examples"]

FORMATS: dict[str, Format] = {
    format.name: format for format in (MANIFEST, SHAREGPT, SWIFT, LIVECC, DENSE, WEBDATASET, SUBTITLES)
}
"""By name, in the order in which `auto` tries them."""


def read_examples(path: AnyPath, *, root: str | AnyPath | None = None, format: str = AUTO) -> Manifest:
    """The examples of a data set, whatever format it is kept in.

    Args:
        path: a file or a folder; in a bucket, a manifest.
        root: the folder that all videos must lie in; None for that of the source.
        format: a name of `FORMATS`, or `auto`.

    Raises:
        ManifestError: it cannot be read, is of no known format, or nothing of it can be used.
    """
    found = choose_format(path, format)
    if found is MANIFEST and (is_remote(path) or not path.is_dir()) and path.suffix not in OTHER_SUFFIXES:
        return read_manifest(path, root=root)
    return read_source(Path(path), found, root=None if root is None else Path(root))


def choose_format(path: AnyPath, name: str = AUTO) -> Format:
    """The format of a given name, or with `auto` that of the source by its looks; see `find_format`."""
    if not is_remote(path):
        return find_format(Path(path), FORMATS, name)
    if name not in (AUTO, MANIFEST.name) or path.suffix in OTHER_SUFFIXES:
        raise ManifestError(
            f"{path} is in a bucket, where data are manifests (JSON lines) and records; copy it to disk, and make "
            "records of it: swjax prepare manifest --source FILE --output gs://BUCKET/data"
        )
    return MANIFEST
