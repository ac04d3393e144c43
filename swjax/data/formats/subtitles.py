"""A folder of films with subtitles beside them: `film.mp4` with `film.srt`, `film.vtt` or `film.en.srt`.

SubRip and WebVTT (https://www.w3.org/TR/webvtt1/). A line may be said from the time at which it appears.
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

from swjax.data.fields import FieldError
from swjax.data.formats.format import Format
from swjax.data.formats.records import Record, column_files
from swjax.data.formats.timed import timed_sentences
from swjax.data.formats.videos import VIDEO_SUFFIXES
from swjax.plain import Json

SUFFIXES = (".srt", ".vtt")

_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{1,3})"
_CUE = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}")
_TAG = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")
_SOUND = re.compile(r"^[\s\u266a\u266b#-]*$")


def _fits(path: Path, record: Json | None) -> bool:
    if record is not None or not path.is_dir() or column_files(path):
        return False
    return any(file.suffix.lower() in SUFFIXES for file in path.rglob("*"))


def _records(path: Path) -> Iterator[Record]:
    """A record for each film of the folder."""
    files = sorted(path.rglob("*"))
    texts = [file for file in files if file.suffix.lower() in SUFFIXES]
    for film in (file for file in files if file.suffix.lower() in VIDEO_SUFFIXES):
        name = film.relative_to(path).as_posix()
        beside = [text for text in texts if text.parent == film.parent and _names(text, film)]
        if not beside:
            yield name, FieldError(f"there are no subtitles beside it ({film.stem}.srt or {film.stem}.vtt)")
        else:
            yield name, {"video": name, "subtitles": beside[0].relative_to(path).as_posix()}


def _names(text: Path, film: Path) -> bool:
    """film.srt, or film.LANGUAGE.srt."""
    stem = text.stem
    return stem == film.stem or (stem.startswith(f"{film.stem}.") and "." not in stem[len(film.stem) + 1 :])


def _convert(record: Json, folder: Path) -> Json:
    file = folder / record["subtitles"]
    try:
        cues = read_cues(file.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise FieldError(f"{file.name} is not UTF-8 text: byte {error.start}; save it as UTF-8") from error
    except ValueError as error:
        raise FieldError(f"{file.name}:{error}") from error
    if not cues:
        raise FieldError(f"{file.name} has no lines with times (00:00:01,000 --> 00:00:02,000)")
    return {
        "video_path": record["video"],
        "video_id": record["video"],
        "sentences": timed_sentences([list(cue) for cue in cues], file.name),
    }


def read_cues(content: str) -> list[tuple[float, float, str]]:
    """The cues of a file of SubRip or WebVTT: start, end (seconds) and text, without marks of style.

    Args:
        content: of the file.

    Raises:
        ValueError: begins with the number of a line whose times cannot be read.
    """
    cues: list[tuple[float, float, str]] = []
    lines = content.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if "-->" not in line:
            continue
        found = _CUE.match(line)
        if found is None:
            raise ValueError(f"{number}: {line.strip()[:40]!r} are no times such as 00:00:01,000 --> 00:00:02,000")
        text = []
        while number < len(lines) and lines[number].strip() and "-->" not in lines[number]:
            text.append(lines[number])
            number += 1
        if number < len(lines) and "-->" in lines[number] and text and text[-1].strip().isdecimal():
            text.pop()  # the number of the next cue, where no blank line stands before it
        said = " ".join(html.unescape(_TAG.sub("", " ".join(text))).split())
        if not _SOUND.match(said):
            cues.append((_seconds(*found.groups()[:4]), _seconds(*found.groups()[4:]), said))
    return cues


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str) -> float:
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction.ljust(3, "0")) / 1000


SUBTITLES = Format(
    "subtitles",
    "a folder of films, each with its subtitles (.srt, .vtt) beside it",
    MappingProxyType({"video": "the video", "subtitles": "the answer, each line from its second on"}),
    _fits,
    _convert,
    _records,
)
