"""Videos inside of tar and zip archives, read without unpacking the archive."""

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from swjax.data.example import ArchiveMember, ExampleError, Rejected
from swjax.data.json_lines import JsonLineError, parse_line
from swjax.plain import Json
from swjax.storage import AnyPath, local_file

MAX_MEMBER_BYTES = 4 * 2**30
"""Of one file in an archive; a larger one is refused before it is read."""


class TarSample(NamedTuple):
    """A sample of a WebDataset: the files of a tar archive that share a name up to its first dot.

    Attributes:
        key: that name.
        fields: the sample's JSON file.
        video: its MP4 file.
    """

    key: str
    fields: Json
    video: ArchiveMember


def read_tar_samples(path: AnyPath) -> Iterator[TarSample | Rejected]:
    """The samples of a WebDataset's tar shard: the JSON read, the video only located.

    An archive that is cut short gives what lies before the cut, and the rest as one `Rejected`; a sample without its
    video or JSON is one as well.
    """
    here = local_file(path)
    size = here.stat().st_size
    waiting: Json = {}
    seen: set[str] = set()
    try:
        with tarfile.open(here, "r:") as archive:
            for member in archive:
                key, _, suffix = member.name.rpartition("/")[2].partition(".")
                if not member.isfile() or suffix not in ("mp4", "json"):
                    continue
                if waiting and waiting["key"] != key:
                    yield _sample(path, waiting, seen)
                    waiting = {}
                waiting["key"] = key
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} goes beyond the end of the file")
                if suffix == "json":
                    file = archive.extractfile(member)
                    waiting["json"] = b"" if file is None else file.read(MAX_MEMBER_BYTES)
                else:
                    waiting["mp4"] = ArchiveMember(member.name, member.size, member.offset_data)
        if waiting:
            yield _sample(path, waiting, seen)
    except (tarfile.TarError, OSError, EOFError) as error:
        yield Rejected(
            str(path), f"the archive is damaged or cut short ({error}); what follows is lost, fetch it again"
        )


def read_zip_members(path: Path) -> dict[str, ArchiveMember]:
    """The files of a zip archive by name.

    Raises:
        ExampleError: if it is damaged or cut short.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                info.filename: ArchiveMember(info.filename, info.file_size)
                for info in archive.infolist()
                if not info.is_dir()
            }
    except (zipfile.BadZipFile, OSError) as error:
        raise ExampleError(f"{path} is not a whole zip archive ({error}); fetch it again") from error


def read_member(path: AnyPath, member: ArchiveMember) -> bytes:
    """The bytes of one file in an archive.

    Raises:
        ExampleError: if it is too large, or the archive is damaged there.
    """
    name = f"{path}:{member.name}"
    if member.size > MAX_MEMBER_BYTES:
        raise ExampleError(f"{name} has {member.size} bytes, more than the limit of {MAX_MEMBER_BYTES}")
    path = local_file(path)
    if member.offset is not None:
        with path.open("rb") as file:
            file.seek(member.offset)
            data = file.read(member.size)
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                data = archive.read(member.name)
        except (zipfile.BadZipFile, zlib.error, KeyError, OSError, EOFError, NotImplementedError) as error:
            raise ExampleError(f"{name} cannot be unpacked ({error}); fetch the archive again") from error
    if len(data) != member.size:
        raise ExampleError(f"{name} has {len(data)} of its {member.size} bytes; fetch the archive again")
    return data


def _sample(path: AnyPath, found: Json, seen: set[str]) -> TarSample | Rejected:
    where = f"{path}:{found['key']}"
    for suffix in ("mp4", "json"):
        if suffix not in found:
            return Rejected(where, f"the archive has no {found['key']}.{suffix}")
    if found["key"] in seen:
        return Rejected(where, "the archive has an earlier sample of that name")
    seen.add(found["key"])
    try:
        fields = parse_line(found["json"])
    except JsonLineError as error:
        return Rejected(where, f"{found['key']}.json: {error}")
    return TarSample(found["key"], fields, found["mp4"])
