"""Chats as others write them, as questions and answers about images and videos."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from swjax.data.example import IMAGE_TAG, VIDEO_TAG
from swjax.data.fields import FieldError
from swjax.data.json_lines import json_type, shown
from swjax.data.text import check_text
from swjax.plain import Json

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
_ROLES = {
    **dict.fromkeys(("user", "human"), USER),
    **dict.fromkeys(("assistant", "gpt", "model"), ASSISTANT),
    "system": SYSTEM,
}


@dataclass(frozen=True)
class Message:
    """One message of a chat: who says it, what, and by their tags in the text the files that it names itself."""

    role: str
    text: str
    media: dict[str, list[str]] = field(default_factory=lambda: {VIDEO_TAG: [], IMAGE_TAG: []})


def read_messages(
    messages: object, name: str, *, role: str = "role", content: str = "content", roles: dict[str, str] | None = None
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


def as_record(
    messages: Sequence[Message], videos: Sequence[str], images: Sequence[str], name: str, system: object = None
) -> Json:
    """The fields of a manifest for a chat.

    One about one video, which the first question shows, has the question before the video, as the paper does. In the
    others images stay where they are shown, and a question stands before the videos that begin its message. Files
    without a tag are shown by the first question, as ms-swift does.

    Args:
        messages: of the chat.
        videos, images: those that the record names beside the chat.
        name: the field of the chat.
        system: the system prompt that the record names beside the chat, if any.

    Raises:
        FieldError: it is no chat of questions and answers in turn, or a tag has no file.
    """
    if messages and messages[0].role == SYSTEM:
        system, messages = messages[0].text, messages[1:]
    expected = [USER, ASSISTANT] * (len(messages) // 2)
    if not messages or [message.role for message in messages] != expected:
        order = ", ".join(message.role for message in messages) or "nobody"
        raise FieldError(f"{name} must be questions and answers in turn, user first; there speak {shown(order)}")
    asked, answers = list(messages[::2]), [message.text.strip() for message in messages[1::2]]
    beside = {VIDEO_TAG: list(videos), IMAGE_TAG: list(images)}
    for tag, files in beside.items():
        if files and not any(tag in message.text and not message.media[tag] for message in asked):
            asked[0] = replace(asked[0], text=tag * len(files) + asked[0].text)
            asked[0].media[tag][:0] = files
            files.clear()
    named: dict[str, list[str]] = {VIDEO_TAG: [], IMAGE_TAG: []}
    for tag, files in named.items():
        for message in asked:
            tags = message.text.count(tag)
            files += message.media[tag] or beside[tag][:tags]
            if not message.media[tag]:
                del beside[tag][:tags]
        files += beside[tag]
    prompt = {} if system is None or system == "" else {"system": system}
    is_classic = len(named[VIDEO_TAG]) == 1 and not named[IMAGE_TAG] and VIDEO_TAG in asked[0].text
    questions = [message.text.replace(VIDEO_TAG, "") if is_classic else _question_first(message) for message in asked]
    turns = [
        {"question": question.strip(), "answer": answer} for question, answer in zip(questions, answers, strict=True)
    ]
    for number, turn in enumerate(turns):
        for place, text in ((2 * number, turn["question"]), (2 * number + 1, turn["answer"])):
            if not text and place:
                raise FieldError(f"message {place} of {name} is empty")
    if not is_classic:
        if not turns[0]["question"]:
            raise FieldError(f"message 0 of {name} is empty")
        media = {"images": named[IMAGE_TAG], "videos": named[VIDEO_TAG]}
        return {"video_path": None, **{key: files for key, files in media.items() if files}, "turns": turns, **prompt}
    if turns[0]["question"]:
        return {"video_path": named[VIDEO_TAG][0], "turns": turns, **prompt}
    if len(turns) > 1:
        raise FieldError("the first question is empty and others follow it; write it out")
    return {"video_path": named[VIDEO_TAG][0], "human_caption": turns[0]["answer"], **prompt}


def _question_first(message: Message) -> str:
    """The text of a question before the videos that begin it."""
    text = message.text.strip()
    leading = re.match(rf"(?:(?:{IMAGE_TAG}|{VIDEO_TAG})\s*)*", text)
    assert leading is not None, "it matches nothing, too"
    videos = leading[0].count(VIDEO_TAG)
    if not videos:
        return text
    return leading[0].replace(VIDEO_TAG, "").strip() + text[leading.end() :] + VIDEO_TAG * videos


def one_path(value: object, name: str) -> list[str]:
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


def _content(content: object, where: str) -> tuple[str, dict[str, list[str]]]:
    """Text of a message, which is text or a list of parts, and the files that it names, by the tags of the text."""
    media: dict[str, list[str]] = {VIDEO_TAG: [], IMAGE_TAG: []}
    if isinstance(content, str):
        return check_text(content, where), media
    if not isinstance(content, list):
        raise FieldError(f"{where} must be text or a list of parts, found {json_type(content)}")
    tags, texts = [], list[str]()
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(check_text(part["text"], f"{where}[{number}].text"))
        elif kind in ("video", "image"):
            tag = VIDEO_TAG if kind == "video" else IMAGE_TAG
            files = one_path(part.get(kind), f"{where}[{number}].{kind}")
            media[tag] += files
            tags += [(len(texts), tag)] * max(1, len(files))
        else:
            known = "text, image and video"
            raise FieldError(f"{where}[{number}] is a part of type {shown(kind)!r}; known are {known}")
    for _, tag in tags:  # tags that are written out as well show nothing more
        texts = [text.replace(tag, "") for text in texts]
    pieces = [("\n" if place else "") + text for place, text in enumerate(texts)]
    for place, tag in reversed(tags):
        pieces.insert(place, tag)
    return "".join(pieces), media
