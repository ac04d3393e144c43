"""FunQA (fesvhtr/FunQA): folders or zip archives train, val and test, and a JSON list of questions and answers each."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swjax.data.archives import read_zip_members
from swjax.data.builders.builder import ReleaseBuilder, SourceError
from swjax.data.example import ArchiveMember, Rejected, VideoExample, VideoFile
from swjax.storage import AnyPath, is_remote

TASKS = ("H2", "H3", "C2", "C3", "M2", "M3")
"""Description and counter-intuitive reasoning of HumorQA, CreativeQA and MagicQA: the paper's six sub-tasks."""

_FOLDERS = {"H": "humor", "C": "creative", "M": "magic"}
_SPLITS = {"train": "train", "val": "validation", "test": "test"}


class Funqa(ReleaseBuilder):
    """FunQA's videos, one record a video and task; where a task has several questions, an epoch draws one of them."""

    HUB_ID = "fesvhtr/FunQA"
    HUB_PATTERNS = ("*.zip", "*.json")

    @classmethod
    def find_parts(cls, source: AnyPath) -> dict[str, list[str]]:
        """The list of questions of each split."""
        if is_remote(source):
            raise SourceError(f"{source} is in a bucket, and FunQA is read from disk; copy it, or mount the bucket")
        lists = {split: source / f"FunQA_{name}.json" for name, split in _SPLITS.items()}
        found = {split: [str(path)] for split, path in lists.items() if path.is_file()}
        if not found:
            raise SourceError(
                f"{source} has none of {', '.join(p.name for p in lists.values())}; give the release's folder"
            )
        return found

    @classmethod
    def content(cls, part: AnyPath, format: str) -> Iterator[bytes]:
        """The list of questions, and the size of the archive of its videos."""
        yield part.read_bytes()
        archive = part.with_name(f"{part.stem.removeprefix('FunQA_')}.zip")
        if archive.is_file():
            yield f"{archive.stat().st_size}\n".encode()

    def read_part(self, part: str) -> Iterator[VideoExample | Rejected]:
        """The examples of a split."""
        path = Path(part)
        try:
            entries = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise SourceError(f"{path} cannot be read as JSON: {error}") from error
        if not isinstance(entries, list):
            raise SourceError(f"{path} is not a list of questions")
        name = path.stem.removeprefix("FunQA_")
        find = _finder(path.parent, name)
        chats: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for number, entry in enumerate(entries):
            if isinstance(entry, dict) and entry.get("task") not in (None, *TASKS):
                continue
            reason = _fault(entry)
            if reason is not None:
                yield Rejected(f"{path.name}[{number}]", reason)
                continue
            chat = chats.setdefault((entry["visual_input"], entry["task"]), [])
            chat.append((entry["instruction"].strip(), entry["output"].strip()))
        for (video, task), ((question, answer), *others) in chats.items():
            key = f"{Path(video).stem}/{task}"
            found = find(video)
            if found is None:
                yield Rejected(key, f"neither the folder {name} nor {name}.zip has the video {video}")
            else:
                yield VideoExample(key, found, None, answer, question, others=tuple(others))


def _fault(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return "not a JSON object"
    for field in ("visual_input", "instruction", "output", "task"):
        if not isinstance(entry.get(field), str) or not entry[field].strip():
            return f"the field {field!r} is missing or no text"
    video = entry["visual_input"]
    if Path(video).name != video or video[0] not in _FOLDERS:
        return f"the video {video!r} is not a file name that begins with H, C or M"
    return None


def _finder(source: Path, name: str) -> Any:
    """From the name of a video to where it lies."""
    packed: dict[str, ArchiveMember] = {}
    archive = source / f"{name}.zip"
    if not (source / name).is_dir() and archive.is_file():
        packed = {"/".join(member.split("/")[-2:]): found for member, found in read_zip_members(archive).items()}

    def find(video: str) -> VideoFile | None:
        folder = f"{name}_{_FOLDERS[video[0]]}"
        if packed:
            member = packed.get(f"{folder}/{video}")
            return None if member is None else VideoFile(archive, member=member)
        path = source / name / folder / video
        return VideoFile(path) if path.is_file() else None

    return find
