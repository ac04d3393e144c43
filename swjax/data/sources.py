"""Data sets by name: a manifest, or a split of prepared records."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from swjax.data.example import ExampleError, Rejected, VideoExample
from swjax.data.formats import AUTO, read_examples
from swjax.data.records import open_records
from swjax.storage import AnyPath, as_path, is_remote


@dataclass(frozen=True)
class Source:
    """An opened data set.

    Attributes:
        examples: with random access.
        rejected: what was skipped, and why; records have none, as these were skipped in preparing them.
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


def open_sources(names: str, *, root: str | AnyPath | None = None, format: str = AUTO) -> tuple[Source, ...]:
    """Open several data sets, their names separated by commas; see `open_source`.

    Args:
        names: separated by commas; blanks around a name are left out.
        root, format: as for `open_source`, of each of them.

    Raises:
        ManifestError, RecordsError: if one of them cannot be used.
    """
    return tuple(open_source(name.strip(), root=root, format=format) for name in names.split(","))


def open_source(name: str | AnyPath, *, root: str | AnyPath | None = None, format: str = AUTO) -> Source:
    """Open a data set.

    Args:
        name: a file or folder of one of `swjax.data.formats`, or the folder of prepared records and a split
            (`data/pe_video:train`).
        root: the folder that the videos must lie in, but for those of records; None for that of the source.
        format: name of the format, or `auto`, which looks.

    Raises:
        ManifestError, RecordsError: if it cannot be used.
    """
    folder, colon, split = str(name).rpartition(":")
    if is_records(name):
        return Source(open_records(folder, split) if colon and "//" not in split else open_records(name, "train"))
    found = read_examples(as_path(name), root=root, format=format)
    return Source(found.examples, found.rejected)


def is_records(name: str | AnyPath) -> bool:
    """Whether a data set is prepared records, by its name and what is in the folder."""
    folder, colon, split = str(name).rpartition(":")
    if colon and "//" not in split and as_path(folder).is_dir():
        return True
    path = as_path(name)
    if is_remote(path):
        return path.is_dir()
    return path.is_dir() and next(Path(path).rglob("*.array_record*"), None) is not None
