"""ms-swift's `query` and `response`, with `history`, and Alpaca's `instruction`, `input` and `output`."""

from pathlib import Path
from types import MappingProxyType

from swjax.data.fields import FieldError, text
from swjax.data.formats.chats import ASSISTANT, USER, Message, as_record, one_path
from swjax.data.formats.format import Format
from swjax.plain import Json


def _fits(path: Path, record: Json | None) -> bool:
    return record is not None and ("response" in record or {"instruction", "output"} <= record.keys())


def _convert(record: Json, folder: Path) -> Json:
    name = "query" if "response" in record else "instruction"
    answer = "response" if "response" in record else "output"
    asked = [record.get(field) for field in (("query",) if name == "query" else ("instruction", "input"))]
    if any(part is not None and not isinstance(part, str) for part in asked):
        raise FieldError(f"the field {name!r} must be text")
    pairs = [*_history(record.get("history")), ("\n".join(part for part in asked if part), text(record, answer))]
    chat = [Message(role, said) for pair in pairs for role, said in zip((USER, ASSISTANT), pair, strict=True)]
    videos = one_path(record.get("videos"), "videos") + one_path(record.get("video"), "video")
    images = one_path(record.get("images"), "images") + one_path(record.get("image"), "image")
    return as_record(chat, videos, images, name, record.get("system"))


def _history(history: object) -> list[tuple[str, str]]:
    if history is None:
        return []
    if not isinstance(history, list):
        raise FieldError("the field 'history' must be a list of pairs of question and answer")
    for number, pair in enumerate(history):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(said, str) for said in pair)):
            raise FieldError(f"history[{number}] must be a pair of question and answer")
    return [(asked, answered) for asked, answered in history]


SWIFT = Format(
    "swift",
    "ms-swift: query, response and videos; Alpaca: instruction, input and output",
    MappingProxyType(
        {
            "query": "the question; it stands before the video that it begins with",
            "instruction": "the question; it stands before the video that it begins with",
            "input": "follows the question",
            "response": "the answer",
            "output": "the answer",
            "history": "earlier questions and answers",
            "videos": "the videos",
            "video": "the video",
            "images": "the images",
            "image": "the image",
            "system": "the system prompt",
        }
    ),
    _fits,
    _convert,
)
