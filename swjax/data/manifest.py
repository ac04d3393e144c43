"""Manifests: one JSON object a line, in the fields of PE-Video.

    {"video_path": "videos/0001.mp4", "video_duration_in_s": 8.0, "human_caption": "The video shows ..."}

`video_id` and `question` may stand beside them. Other fields are left alone.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swjax.data.example import Rejected, VideoExample


class ManifestError(ValueError):
    """The manifest as a whole cannot be used."""


@dataclass(frozen=True)
class Manifest:
    """The examples of a manifest, in its order, and the lines that were set aside."""

    examples: tuple[VideoExample, ...]
    rejected: tuple[Rejected, ...]


class _LineError(ValueError):
    """What is wrong with one line."""


def read_manifest(path: str | Path, *, strict: bool = False) -> Manifest:
    """Read a manifest and look whether its videos are there.

    Args:
        path: the JSON lines file. Relative video paths start from its folder.
        strict: raise at the first bad line instead of setting it aside.

    Returns:
        The good lines as examples. A bad line (not JSON, a field missing or of the wrong type, a video that is not
        there, a `video_id` seen before) becomes a `Rejected` whose `where` is like "manifest.jsonl:17". Empty lines
        are skipped.

    Raises:
        ManifestError: if the file is missing or not UTF-8, has no good line, or, when strict, has a bad one.
    """
    path = Path(path)
    examples: dict[str, VideoExample] = {}
    rejected = []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        try:
            example = _parse_line(line, path.parent, default_key=where)
            if example.key in examples:
                raise _LineError(f"video_id {example.key!r} was used by an earlier line; every line needs its own")
        except _LineError as error:
            if strict:
                raise ManifestError(f"{path}:{number}: {error}") from error
            rejected.append(Rejected(where, str(error)))
        else:
            examples[example.key] = example
    if not examples:
        if not rejected:
            raise ManifestError(f"{path} has no usable example: it is empty")
        raise ManifestError(
            f"{path} has no usable example; the first of {len(rejected)} bad lines is {rejected[0].where}: "
            f"{rejected[0].reason}"
        )
    return Manifest(tuple(examples.values()), tuple(rejected))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ManifestError(
            f"there is no manifest {path}; check the path, or make a data set with `swjax prepare`"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"the manifest {path} cannot be read as UTF-8 text: {error}") from error


def _parse_line(line: str, folder: Path, *, default_key: str) -> VideoExample:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise _LineError(f"not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(record, dict):
        raise _LineError(f"expected a JSON object, found {_json_type(record)}")
    video_path = folder / _text(record, "video_path")
    example = VideoExample(
        key=_key(record, default_key),
        video_path=video_path,
        duration_s=_duration(record),
        caption=_text(record, "human_caption"),
        question=None if record.get("question") is None else _text(record, "question"),
    )
    if not video_path.is_file():
        raise _LineError(f"there is no video file {video_path}")
    return example


def _field(record: dict[str, Any], name: str) -> Any:
    if name not in record:
        raise _LineError(f"the field {name!r} is missing")
    return record[name]


def _text(record: dict[str, Any], name: str) -> str:
    value = _field(record, name)
    if not isinstance(value, str):
        raise _LineError(f"the field {name!r} must be text, found {_json_type(value)}")
    if not value.strip():
        raise _LineError(f"the field {name!r} is empty")
    return value.strip()


def _duration(record: dict[str, Any]) -> float:
    name = "video_duration_in_s"
    value = _field(record, name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _LineError(f"the field {name!r} must be a number of seconds, found {_json_type(value)}")
    if not math.isfinite(value) or value <= 0:
        raise _LineError(f"the field {name!r} must be above 0 seconds, found {value}")
    return float(value)


def _key(record: dict[str, Any], default: str) -> str:
    value = record.get("video_id")
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise _LineError(f"the field 'video_id' must be text or an integer, found {_json_type(value)}")
    return str(value)


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {value}")
