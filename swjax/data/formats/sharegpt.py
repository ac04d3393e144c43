"""LLaMA-Factory's ShareGPT layout, which ms-swift and others take too: `messages` or `conversations`, and `videos`.

Where a dataset_info.json stands beside the file and names it, its columns and tags are used.
"""

import functools
import json
from pathlib import Path
from types import MappingProxyType

from swjax.data.fields import FieldError
from swjax.data.formats.chats import ASSISTANT, SYSTEM, USER, as_record, one_path, read_messages
from swjax.data.formats.format import Format
from swjax.plain import Json

_CHATS = ("messages", "conversations")


def _fits(path: Path, record: Json | None) -> bool:
    if record is None:
        return False
    return any(isinstance(record.get(name), list) for name in (*_CHATS, _chat_column(path)))


def _convert(record: Json, folder: Path) -> Json:
    described = _described(folder)
    columns, tags = described.get("columns", {}), described.get("tags", {})
    name = columns.get("messages") or next((chat for chat in _CHATS if chat in record), _CHATS[0])
    if name not in record:
        raise FieldError(f"the field {name!r} is missing")
    messages = record[name]
    first = messages[0] if isinstance(messages, list) and messages and isinstance(messages[0], dict) else {}
    default = ("from", "value") if "from" in first else ("role", "content")
    roles = {tags[f"{role}_tag"]: role for role in (USER, ASSISTANT, SYSTEM) if f"{role}_tag" in tags}
    chat = list(
        read_messages(
            messages,
            name,
            role=tags.get("role_tag", default[0]),
            content=tags.get("content_tag", default[1]),
            roles=roles,
        )
    )
    column = columns.get("videos") or ("videos" if "videos" in record else "video")
    videos = one_path(record.get(column), column)
    column = columns.get("images") or ("images" if "images" in record else "image")
    system = record.get(columns.get("system") or "system")
    return _named(record, as_record(chat, videos, one_path(record.get(column), column), name, system))


def _named(record: Json, converted: Json) -> Json:
    """With the name of the record, if it has one."""
    name = record.get("video_id", record.get("id"))
    return converted if name is None or isinstance(name, bool | float) else {**converted, "video_id": name}


def _chat_column(path: Path) -> str:
    return str(_described(path if path.is_dir() else path.parent).get("columns", {}).get("messages", _CHATS[0]))


@functools.lru_cache(maxsize=8)
def _described(folder: Path) -> Json:
    """The one data set that a dataset_info.json in the folder describes as ShareGPT's; {} for none or several kinds."""
    try:
        content = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    sets = [entry for entry in content.values() if isinstance(entry, dict) and entry.get("formatting") == "sharegpt"]
    kinds = {json.dumps([entry.get("columns"), entry.get("tags")], sort_keys=True) for entry in sets}
    return {key: sets[0].get(key) or {} for key in ("columns", "tags")} if len(kinds) == 1 else {}


SHAREGPT = Format(
    "sharegpt",
    "LLaMA-Factory, ms-swift: messages or conversations, with <video> and videos, <image> and images",
    MappingProxyType(
        {
            "messages": "questions and answers; a question stands before the video that it begins with",
            "conversations": "questions and answers; a question stands before the video that it begins with",
            "videos": "the videos",
            "video": "the video",
            "images": "the images",
            "image": "the image",
            "system": "the system prompt",
            "id": "names the example",
            "video_id": "names the example",
        }
    ),
    _fits,
    _convert,
)
