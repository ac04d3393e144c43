"""Dense captions as ActivityNet Captions has them: for each video `timestamps` and `sentences`.

A sentence may be said from the start of its event on. The videos are looked for by name, beside the file and in folders
below it.
"""

import functools
from pathlib import Path
from types import MappingProxyType

from swjax.data.fields import FieldError, key, optional_seconds
from swjax.data.formats.chats import one_path
from swjax.data.formats.format import Format
from swjax.data.formats.timed import timed_sentences
from swjax.data.formats.videos import VIDEO_SUFFIXES
from swjax.plain import Json


def _fits(path: Path, record: Json | None) -> bool:
    return record is not None and {"timestamps", "sentences"} <= record.keys()


def _convert(record: Json, folder: Path) -> Json:
    spans, texts = record.get("timestamps"), record.get("sentences")
    if not (isinstance(spans, list) and isinstance(texts, list) and len(spans) == len(texts)):
        raise FieldError("the fields 'timestamps' and 'sentences' must be lists of one length")
    for number, span in enumerate(spans):
        if not (isinstance(span, list) and len(span) == 2):
            raise FieldError(f"timestamps[{number}] must be [start, end], found {span!r}")
    entries = [[*span, text] for span, text in zip(spans, texts, strict=True)]
    name = key(record, "")
    videos = one_path(record.get("video"), "video") or [_find(name, folder)]
    return {
        "video_path": videos[0],
        **({"video_id": name} if name else {}),
        "video_duration_in_s": optional_seconds(record, "duration"),
        "sentences": timed_sentences(entries, "sentences"),
    }


def _find(name: str, folder: Path) -> str:
    found = _videos_below(folder).get(name)
    if found is None:
        raise FieldError(f"there is no video called {name!r} in {folder} or below it ({', '.join(VIDEO_SUFFIXES)})")
    return found


@functools.lru_cache(maxsize=4)
def _videos_below(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES)
    return {file.stem: str(file.relative_to(folder)) for file in reversed(files)}


DENSE = Format(
    "dense",
    "ActivityNet Captions: for each video, timestamps and sentences",
    MappingProxyType(
        {
            "timestamps": "each sentence may be said from its start on; the ends are left alone",
            "sentences": "the answer",
            "duration": "a hint; the video is measured",
            "video_id": "names the example, and the video file",
            "video": "the video",
        }
    ),
    _fits,
    _convert,
)
