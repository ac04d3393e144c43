"""Chats as others write them, as questions and answers about one video."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from swjax.data.fields import FieldError
from swjax.data.json_lines import json_type, shown
from swjax.data.text import check_text

VIDEO_TAG, IMAGE_TAG, AUDIO_TAG = "<video>", "<image>", "<audio>"

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
_ROLES = {
    **dict.fromkeys(("user", "human"), USER),
    **dict.fromkeys(("assistant", "gpt", "model"), ASSISTANT),
    "system": SYSTEM,
}


@dataclass(frozen=True)
class Message:
    """One message of a chat: who says it, what, and the videos that it names itself."""

    role: str
    text: str
    videos: tuple[str, ...] = ()


def read_messages(
    messages: Any, name: str, *, role: str = "role", content: str = "content", roles: dict[str, str] | None = None
) -> Iterator[Message]:
    """The messages of a chat.

    Args:
        messages: a list of objects.
        name: the field that it stands in.
        role, content: the keys of who speaks and what is said.
        roles: what the chat calls them, beside the usual names.

    Raises:
        FieldError: names the message and what is wrong with it.
    """
    if not (isinstance(messages, list) and messages):
        raise FieldError(f"the field {name!r} must be a list of messages, found {json_type(messages)}")
    for number, message in enumerate(messages):
        where = f"{name}[{number}]"
        if not isinstance(message, dict) or role not in message or content not in message:
            raise FieldError(f"{where} must be an object with {role!r} and {content!r}")
        who = {**_ROLES, **(roles or {})}.get(str(message[role]))
        if who is None:
            raise FieldError(f"{where} is said by {shown(message[role])!r}; known are {', '.join(_ROLES)}")
        yield Message(who, *_content(message[content], f"{where}.{content}"))


def as_turns(
    messages: Sequence[Message], videos: Sequence[str], images: Sequence[Any], name: str
) -> tuple[str, list[dict[str, str]]]:
    """The video of a chat, and its questions and answers as the `turns` of a manifest.

    The system prompt is left out, as the model's family has its own.

    Args:
        messages: of the chat.
        videos, images: those that the record names beside the chat.
        name: the field of the chat.

    Raises:
        FieldError: it is no chat about one video, in its first question.
    """
    if images or any(IMAGE_TAG in message.text for message in messages):
        raise FieldError(f"{'the field images' if images else name} has an image; images cannot be trained on yet")
    said = [message for message in messages if message.role != SYSTEM]
    expected = [USER, ASSISTANT] * (len(said) // 2)
    if not said or [message.role for message in said] != expected:
        order = ", ".join(message.role for message in said) or "nobody"
        raise FieldError(f"{name} must be questions and answers in turn, user first; there speak {shown(order)}")
    named = [*videos, *(video for message in said for video in message.videos)]
    if len(named) != 1:
        raise FieldError(
            f"{name} is about {len(named)} videos; one is trained on" + ("" if named else ", text alone is not yet")
        )
    for number, message in enumerate(said):
        if number and (VIDEO_TAG in message.text or message.videos):
            raise FieldError(f"{name} shows its video in message {number}; the first question must show it")
    texts = [message.text.replace(VIDEO_TAG, "").strip() for message in said]
    for number, text in enumerate(texts):
        if not text and number:
            raise FieldError(f"message {number} of {name} is empty")
    return named[0], [
        {"question": question, "answer": answer} for question, answer in zip(texts[::2], texts[1::2], strict=True)
    ]


def as_record(video: str, turns: list[dict[str, str]]) -> dict[str, Any]:
    """The fields of a manifest for a chat; a first question that only shows the video is the generic one."""
    if turns[0]["question"]:
        return {"video_path": video, "turns": turns}
    if len(turns) > 1:
        raise FieldError("the first question is empty and others follow it; write it out")
    return {"video_path": video, "human_caption": turns[0]["answer"]}


def one_path(value: Any, name: str) -> list[str]:
    """Paths of a field: a path, a list of them, or none.

    Raises:
        FieldError: it is something else, such as the file itself.
    """
    values = value if isinstance(value, list) else [] if value is None else [value]
    paths = []
    for entry in values:
        if isinstance(entry, dict) and isinstance(entry.get("path"), str) and not entry.get("bytes"):
            entry = entry["path"]
        if not isinstance(entry, str):
            kind = "a list of pictures" if isinstance(entry, list) else json_type(entry)
            if isinstance(entry, dict) and entry.get("bytes"):
                kind = "the file itself; write it to a file, and name that"
            raise FieldError(f"the field {name!r} must name files, found {kind}")
        paths.append(check_text(entry.removeprefix("file://"), f"field {name!r}"))
    return paths


def _content(content: Any, where: str) -> tuple[str, tuple[str, ...]]:
    """Text and videos of a message, which is text or a list of parts."""
    if isinstance(content, str):
        return check_text(content, where), ()
    if not isinstance(content, list):
        raise FieldError(f"{where} must be text or a list of parts, found {json_type(content)}")
    texts, videos = [], []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(check_text(part["text"], f"{where}[{number}].text"))
        elif kind == "video":
            videos += one_path(part.get("video"), f"{where}[{number}].video")
        elif kind in ("image", "image_url"):
            raise FieldError(f"{where}[{number}] is an image; images cannot be trained on yet")
        else:
            raise FieldError(f"{where}[{number}] is a part of type {shown(kind)!r}; known are text and video")
    return "\n".join(texts), tuple(videos)
