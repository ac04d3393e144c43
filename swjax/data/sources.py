"""Data sets by name: a manifest, or a split of prepared records."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from swjax.data.example import ExampleError, Rejected, VideoExample
from swjax.data.manifest import read_manifest
from swjax.data.records import open_records
from swjax.storage import AnyPath, as_path


@dataclass(frozen=True)
class Source:
    """An opened data set.

    Attributes:
        examples: with random access.
        rejected: lines of a manifest that were set aside; records have none, these were set aside in preparing them.
    """

    examples: Sequence[VideoExample]
    rejected: tuple[Rejected, ...] = ()


def readable_examples(examples: Sequence[VideoExample]) -> Iterator[VideoExample | Rejected]:
    """Examples one by one; in the place of a record that is damaged, what is wrong with it."""
    for number in range(len(examples)):
        try:
            yield examples[number]
        except ExampleError as error:
            yield Rejected(f"record {number}", str(error))


def open_sources(names: str, *, root: str | AnyPath | None = None) -> tuple[Source, ...]:
    """Open several data sets, their names separated by commas; see `open_source`."""
    return tuple(open_source(name.strip(), root=root) for name in names.split(","))


def open_source(name: str | AnyPath, *, root: str | AnyPath | None = None) -> Source:
    """Open a data set.

    Args:
        name: a manifest (`data/clips/manifest.jsonl`), or the folder of prepared records and a split
            (`data/pe_video:train`).
        root: the folder that the videos of a manifest must lie in; None for the manifest's own.

    Raises:
        ManifestError, RecordsError: if it cannot be used.
    """
    folder, colon, split = str(name).rpartition(":")
    if colon and as_path(folder).is_dir():
        return Source(open_records(folder, split))
    if as_path(name).is_dir():
        return Source(open_records(name, "train"))
    manifest = read_manifest(name, root=root)
    return Source(manifest.examples, manifest.rejected)
