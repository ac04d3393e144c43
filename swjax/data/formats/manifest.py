"""Our own format (`swjax.data.manifest`)."""

from pathlib import Path
from types import MappingProxyType

from swjax.data.formats.format import Format
from swjax.plain import Json


def _fits(path: Path, record: Json | None) -> bool:
    return record is not None and "video_path" in record


def _convert(record: Json, folder: Path) -> Json:
    return record


MANIFEST = Format(
    "manifest",
    "JSON lines with video_path and human_caption",
    MappingProxyType(
        {
            "video_path": "the video",
            "video_duration_in_s": "a hint; the video is measured",
            "human_caption": "the answer",
            "video_id": "names the example",
            "question": "the question",
            "start_s": "where the part of the video begins",
            "end_s": "where the part of the video ends",
            "sentences": "the answer, each sentence from its second on",
            "turns": "questions and answers",
            "images": "the images, where the questions have <image>",
            "videos": "the videos, where the questions have <video>",
            "system": "the system prompt",
        }
    ),
    _fits,
    _convert,
)
