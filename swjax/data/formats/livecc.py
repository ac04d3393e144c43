"""LiveCC's chats with a time for each word: a line is a list of a user's video and an assistant's `text_stream`."""

from pathlib import Path
from types import MappingProxyType

from swjax.data.fields import FieldError, optional_seconds
from swjax.data.formats.chats import one_path
from swjax.data.formats.format import Format
from swjax.data.formats.records import CHAT
from swjax.data.formats.timed import timed_sentences
from swjax.plain import Json


def _fits(path: Path, record: Json | None) -> bool:
    return record is not None and any(part.get("type") == "text_stream" for _, part in _parts(record.get(CHAT)))


def _convert(record: Json, folder: Path) -> Json:
    parts = _parts(record.get(CHAT))
    shown = [part for role, part in parts if role == "user" and part.get("type") == "video"]
    spoken = [part for role, part in parts if role == "assistant" and part.get("type") == "text_stream"]
    if len(shown) != 1 or len(spoken) != 1:
        raise FieldError(
            f"{CHAT} has {len(shown)} parts of type 'video' from the user and {len(spoken)} of type 'text_stream' from "
            "the assistant; one of each is trained on"
        )
    if any(part.get("type") == "image" for _, part in parts):
        raise FieldError(f"{CHAT} has an image, and words with times are about one video")
    video = one_path(shown[0].get("video"), "video")
    if len(video) != 1:
        raise FieldError("the field 'video' must name one file")
    start = optional_seconds(shown[0], "video_start", or_zero=True) or 0.0
    end = optional_seconds(shown[0], "video_end")
    asked = [part["text"] for role, part in parts if role == "user" and isinstance(part.get("text"), str)]
    question = "\n".join(text.strip() for text in asked if text.strip())
    return {
        "video_path": video[0],
        "start_s": start,
        **({} if end is None else {"end_s": end}),
        **({"question": question} if question else {}),
        "sentences": timed_sentences(spoken[0].get("text_stream"), "text_stream", since=start),
    }


def _parts(chat: object) -> list[tuple[str, Json]]:
    """Who says it, and each part of what is said."""
    found = []
    for message in chat if isinstance(chat, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        found += [(str(message.get("role")), part) for part in parts if isinstance(part, dict)] if content else []
    return found


LIVECC = Format(
    "livecc",
    "LiveCC: chats with a time for each word (text_stream)",
    MappingProxyType(
        {CHAT: "the video from video_start to video_end, the user's text as the question, each word from its second on"}
    ),
    _fits,
    _convert,
)
