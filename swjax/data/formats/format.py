"""What a format is, and how files of one are read."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from swjax.data.example import ArchiveMember, ExampleError, Rejected, Video, VideoExample, VideoFile
from swjax.data.fields import FieldError
from swjax.data.formats.records import Record, read_records
from swjax.data.json_lines import JsonLineError
from swjax.data.manifest import Manifest, ManifestError, parse_record
from swjax.plain import Json

MEMBER = "archive member"
"""The key under which a converted record has its `ArchiveMember`, where `video_path` names an archive."""

LOOKED_AT = 20
"""Records that are looked at to tell the format of a file."""


@dataclass(frozen=True)
class Format:
    """A way in which a data set is kept.

    Attributes:
        name: for `config.data.format`.
        meaning: one line, for lists of the formats.
        fields: name of a field -> what becomes of it. Fields that it does not name are left alone.
        fits: whether a record is one of this format; of a source that is no file of records, None is given.
        convert: a record and the folder of its file -> an object with the fields of a manifest; raises `FieldError`,
            which names the field.
        records: the records of a source, each with where it stands, or what is wrong with it there.
    """

    name: str
    meaning: str
    fields: Mapping[str, str]
    fits: Callable[[Path, Json | None], bool]
    convert: Callable[[Json, Path], Json]
    records: Callable[[Path], Iterator[Record]] = read_records


def find_format(path: Path, formats: Mapping[str, Format], name: str) -> Format:
    """The format of a given name, or with `auto` the first whose record stands among the first of the source.

    Args:
        path: the source.
        formats: those to choose from.
        name: of one of them, or `auto`.

    Raises:
        ManifestError: there is no such format, or the source is of none.
    """
    if name != "auto":
        if name not in formats:
            raise ManifestError(f"unknown format {name!r}; choose one of: auto, {', '.join(formats)}")
        return formats[name]
    if not path.exists():
        return formats["manifest"]  # which says so
    for found in formats.values():
        if found.fits(path, None):
            return found
    first = [record for _, record in islice(read_records(path), LOOKED_AT) if isinstance(record, dict)]
    for record in first:
        for found in formats.values():
            if found.fits(path, record):
                return found
    if not first:
        return formats["manifest"]  # which says what is wrong with every line
    shown = f"; its first record has the fields {', '.join(map(repr, first[0]))}"
    raise ManifestError(
        f"{path} is of no known format{shown}; give one with --format or config.data.format: {', '.join(formats)} "
        "(docs/data.md shows a record of each)"
    )


def read_source(path: Path, found: Format, *, root: str | Path | None = None) -> Manifest:
    """The examples of a source, and what of it cannot be used, each with its place and reason.

    Args:
        path: a file or a folder.
        found: its format.
        root: the folder that all videos must lie in; None for that of the source.

    Raises:
        ManifestError: the source cannot be read, or nothing of it can be used.
    """
    folder = path if path.is_dir() else path.parent
    examples: dict[str, VideoExample] = {}
    rejected: list[Rejected] = []
    for where, record in found.records(path):
        try:
            if isinstance(record, Exception):
                raise record
            converted = found.convert(record, folder)
            example = parse_record(converted, folder, folder if root is None else Path(root), default_key=where)
            if isinstance(converted.get(MEMBER), ArchiveMember):
                example = replace(example, video=_inside(example.video, converted[MEMBER]))
            if example.key in examples:
                raise FieldError(f"{example.key!r} names an earlier record, too; every record needs its own name")
        except (FieldError, JsonLineError, ExampleError) as error:
            rejected.append(Rejected(where, str(error)))
        else:
            examples[example.key] = example
    if not examples:
        first = f"; the first of {len(rejected)} is {rejected[0].where}: {rejected[0].reason}" if rejected else ""
        raise ManifestError(f"{path}, read as {found.name}, has no usable example{first or ': it is empty'}")
    return Manifest(tuple(examples.values()), tuple(rejected))


def _inside(video: Video, member: ArchiveMember) -> VideoFile:
    """A film, or a part of one, in the archive that was taken for it."""
    part = video if isinstance(video, VideoFile) else VideoFile(Path(str(video)))
    return replace(part, member=member)


def count_fields(path: Path, found: Format, *, limit: int) -> list[tuple[str, int, str]]:
    """The fields of the first records of a source: name, how many records have it, and what becomes of it.

    Args:
        path: a file or a folder.
        found: its format.
        limit: records that are looked at.

    Returns:
        Those of most records first. A record in which a field is null does not count as having it.
    """
    records = (record for _, record in islice(found.records(path), limit) if isinstance(record, dict))
    counts = Counter(name for record in records for name, value in record.items() if value is not None)
    return [(name, number, found.fields.get(name, "left alone")) for name, number in counts.most_common()]
