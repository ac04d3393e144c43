"""WebDataset: tar shards in which `0001.mp4` lies beside `0001.json`; the films are read out of the shards."""

from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

from swjax.data.archives import read_tar_samples
from swjax.data.example import Rejected
from swjax.data.fields import FieldError, text
from swjax.data.formats.format import MEMBER, Format
from swjax.data.formats.records import Record
from swjax.data.formats.sharegpt import SHAREGPT
from swjax.plain import Json

_CAPTIONS = ("human_caption", "caption", "text")


def _shards(path: Path) -> list[Path]:
    return sorted(path.rglob("*.tar")) if path.is_dir() else [path] if path.suffix == ".tar" else []


def _fits(path: Path, record: Json | None) -> bool:
    return record is None and bool(_shards(path))


def _records(path: Path) -> Iterator[Record]:
    for shard in _shards(path):
        for sample in read_tar_samples(shard):
            if isinstance(sample, Rejected):
                yield sample.where, FieldError(sample.reason)
                continue
            name = shard.name if shard == path else shard.relative_to(path).as_posix()
            yield f"{name}:{sample.key}", {**sample.fields, "video": name, MEMBER: sample.video}


def _convert(record: Json, folder: Path) -> Json:
    if isinstance(record.get("messages") or record.get("conversations"), list):
        # What the sample itself calls its film is a name in the shard.
        chat = {name: value for name, value in record.items() if name != "videos"}
        converted = SHAREGPT.convert(chat, folder)
        if converted["video_path"] is None:
            raise FieldError("its chat is not about its film alone; images and several videos are read from files")
        return {**converted, MEMBER: record[MEMBER]}
    caption = next((name for name in _CAPTIONS if record.get(name) is not None), None)
    if caption is None:
        raise FieldError(f"its JSON has none of the fields {', '.join(map(repr, _CAPTIONS))}, nor messages")
    question = {"question": text(record, "question")} if record.get("question") is not None else {}
    return {"video_path": record["video"], "human_caption": text(record, caption), **question, MEMBER: record[MEMBER]}


WEBDATASET = Format(
    "webdataset",
    "WebDataset: tar shards of 0001.mp4 and 0001.json",
    MappingProxyType(
        {
            "video": "the shard",
            MEMBER: "the film in it",
            **dict.fromkeys(_CAPTIONS, "the answer, the first of human_caption, caption and text"),
            "question": "the question",
            "messages": "questions and answers",
            "conversations": "questions and answers",
        }
    ),
    _fits,
    _convert,
    _records,
)
