"""Manifests: one JSON object a line, in the fields of PE-Video.

    {"video_path": "videos/0001.mp4", "human_caption": "The video shows ..."}

Beside them may stand

    video_duration_in_s   how long the video is; a hint, as the file itself is measured
    video_id              names the example; by default its line does
    question              what to ask; by default a generic question
    start_s, end_s        the part of the file that is meant, in seconds after its first frame
    sentences             [{"text": "A dog runs in.", "start_s": 2.5}, ...]: the caption, and when it may be said;
                          instead of human_caption; an empty list says that nothing is to be said
    questions             [{"text": "What is it?", "video_s": 4, "answer": "A dog."}, ...]: asked in mid-video; in the
                          place of an answer, which is due at once, `sentences` with times; `kind` names what sort it is
    turns                 [{"question": "What is it?", "answer": "A dog."}, ...]: a chat; instead of question and
                          human_caption
    images, videos        files that the questions show where they have the tags <image> and <video>, in their order;
                          instead of video_path. A chat about nothing to look at has the video_path null
    system                the system prompt; by default that of the model's family

Other fields are left alone. Times are in seconds, up to `MAX_SECONDS`.
"""

import os
import posixpath
import re
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from swjax.data.example import (
    IMAGE_TAG,
    VIDEO_TAG,
    ExampleError,
    Picture,
    Question,
    Rejected,
    Sentence,
    VideoExample,
    VideoFile,
)
from swjax.data.fields import FieldError, key, objects, optional_seconds, seconds, text
from swjax.data.json_lines import JsonLineError, parse_line, read_lines, shown
from swjax.data.text import check_text, join_texts
from swjax.plain import Json
from swjax.storage import AnyPath, as_path, is_remote, list_files, refused_scheme


class ManifestError(ValueError):
    """The manifest as a whole cannot be used."""


@dataclass(frozen=True)
class Manifest:
    """The examples of a manifest, in its order, and the lines that were skipped."""

    examples: tuple[VideoExample, ...]
    rejected: tuple[Rejected, ...]


def read_manifest(path: str | AnyPath, *, root: str | AnyPath | None = None, strict: bool = False) -> Manifest:
    """Read a manifest and look whether its videos are there.

    Args:
        path: the JSON lines file. Relative video paths start from its folder.
        root: the folder that all videos must lie in, so that a manifest from elsewhere cannot read any file; None for
            the manifest's own. Links inside it are followed.
        strict: raise at the first bad line instead of setting it aside.

    Returns:
        The good lines as examples. A bad line (not UTF-8 or not JSON, a field missing or of the wrong type, half a
        character in a text, a video that is not there or outside of the root, a `video_id` seen before) becomes a
        `Rejected` whose `where` is like "manifest.jsonl:17". Empty lines are skipped.

    Raises:
        ManifestError: if the file is missing, cannot be read or is UTF-16, has no good line, or, when strict, has a
            bad one.
    """
    path = as_path(path)
    root = path.parent if root is None else as_path(root)
    # One listing: asking for each video would be a request each.
    there = frozenset(list_files(root)) if is_remote(root) else None
    examples: dict[str, VideoExample] = {}
    rejected = []
    for number, line in _read_lines(path):
        where = f"{path.name}:{number}"
        try:
            example = _parse_line(line, path.parent, root, there, default_key=where)
            if example.key in examples:
                raise FieldError(f"video_id {example.key!r} was used by an earlier line; every line needs its own")
        except (FieldError, JsonLineError, ExampleError) as error:
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


def _read_lines(path: AnyPath) -> list[tuple[int, bytes]]:
    try:
        return read_lines(path)
    except FileNotFoundError as error:
        raise ManifestError(
            f"there is no manifest {path}; check the path, or make a data set with `swjax prepare`"
        ) from error
    except (OSError, JsonLineError) as error:
        raise ManifestError(f"the manifest {path} cannot be read as UTF-8 text: {error}") from error


def _parse_line(
    line: bytes, folder: AnyPath, root: AnyPath, there: Set[str] | None, *, default_key: str
) -> VideoExample:
    return parse_record(parse_line(line), folder, root, default_key=default_key, there=there)


def parse_record(
    record: Json, folder: AnyPath, root: AnyPath, *, default_key: str, there: Set[str] | None = None
) -> VideoExample:
    """An example of an object with the fields of a manifest.

    Args:
        record: the object.
        folder: what relative video paths start from.
        root: the folder that videos must lie in.
        default_key: what the example is called if it does not say.
        there: the files in the root, if these have been listed; None looks for the video.

    Raises:
        FieldError, ExampleError: what is wrong with it.
    """
    sentences = _sentences(record)
    (question, caption), *later = turns = _turns(record, sentences)
    video: AnyPath | VideoFile | None = None
    duration_s, media = None, list[Picture | AnyPath]()
    if _is_mixed(record):
        if question is None or sentences:
            raise FieldError("a chat without 'video_path' has a 'question' and 'human_caption', or 'turns'")
        media = _media(record, folder, [asked or "" for asked, _ in turns])
    else:
        video, duration_s = _video(record, _path(text(record, "video_path"), "video_path", folder))
    for shown_one in media if video is None else [video]:
        kind, file = ("image", shown_one.file) if isinstance(shown_one, Picture) else ("video", shown_one)
        _check_file(file.path if isinstance(file, VideoFile) else file, kind, root, there)
    return VideoExample(
        key=key(record, default_key),
        video=video,
        duration_s=duration_s,
        caption=caption,
        question=question,
        sentences=sentences,
        questions=_questions(record),
        later=tuple((asked or "", answered) for asked, answered in later),
        media=tuple(media),
        system=None if record.get("system") is None else text(record, "system"),
    )


def _is_mixed(record: Json) -> bool:
    """Whether it is a chat about images, several videos or nothing to look at."""
    named = [name for name in ("images", "videos") if record.get(name) is not None]
    if named and record.get("video_path") is not None:
        raise FieldError(f"the fields 'video_path' and {named[0]!r} exclude each other")
    return bool(named) or ("video_path" in record and record["video_path"] is None)


def _media(record: Json, folder: AnyPath, questions: list[str]) -> list[Picture | AnyPath]:
    """The images and videos of a chat, in the order of their tags."""
    waiting: dict[str, list[Picture | AnyPath]] = {}
    for name, tag in (("images", IMAGE_TAG), ("videos", VIDEO_TAG)):
        names = [] if record.get(name) is None else record[name]
        if not (isinstance(names, list) and all(isinstance(one, str) and one.strip() for one in names)):
            raise FieldError(f"the field {name!r} must be a list of files, found {shown(names)}")
        tags = sum(question.count(tag) for question in questions)
        if len(names) != tags:
            raise FieldError(f"the field {name!r} has {len(names)} files, and the questions have {tags} times {tag}")
        paths = [_path(check_text(one, f"field {name!r}"), name, folder) for one in names]
        waiting[tag] = [Picture(path) for path in paths] if tag == IMAGE_TAG else [*paths]
    return [waiting[tag].pop(0) for tag in re.findall(f"{IMAGE_TAG}|{VIDEO_TAG}", "".join(questions))]


def _check_file(path: AnyPath, kind: str, root: AnyPath, there: Set[str] | None) -> None:
    """Refuse a file that is not there, or lies outside of the root."""
    within = _within(path, root)
    if within is None:
        raise FieldError(f"the {kind} {path} lies outside of the data root {root}; move it there, or name another root")
    try:
        is_file = path.is_file() if there is None else within in there
    except OSError as error:
        raise FieldError(f"there can be no {kind} file {shown(path)}: {error.strerror}") from error
    if not is_file:
        raise FieldError(f"there is no {kind} file {path}")


def _within(path: AnyPath, root: AnyPath) -> str | None:
    """The path of a file from a folder; None if it lies outside."""
    if is_remote(path) != is_remote(root):
        return None
    if is_remote(path):
        whole, above = (posixpath.normpath(os.fspath(one).replace("://", "/")) for one in (path, root))
    else:
        whole, above = (os.path.abspath(one) for one in (path, root))
    return os.path.relpath(whole, above) if Path(whole).is_relative_to(above) else None


def _path(path: str, name: str, folder: AnyPath) -> AnyPath:
    """The path that a field names, from the manifest's folder."""
    if "\0" in path:
        raise FieldError(f"the field {name!r} has a NUL character, which no file name has")
    if "://" in path and refused_scheme(path):
        raise FieldError(f"the field {name!r} is the address {shown(path)}; fetch the video, and name the file")
    return as_path(path) if "://" in path else folder / path


def _video(record: Json, path: AnyPath) -> tuple[AnyPath | VideoFile, float | None]:
    """What is to be watched, and how long it is said to be."""
    claimed_s, end_s = optional_seconds(record, "video_duration_in_s"), optional_seconds(record, "end_s")
    start_s = optional_seconds(record, "start_s", or_zero=True)
    last = claimed_s if end_s is None else end_s
    if start_s is None and end_s is None:
        return path, claimed_s
    start_s = start_s or 0.0
    if last is not None and start_s >= last:
        raise FieldError(f"the clip would begin at {start_s:g} s and end at {last:g} s")
    return VideoFile(path, start_s, end_s), None if last is None else last - start_s


def _turns(record: Json, sentences: tuple[Sentence, ...]) -> list[tuple[str | None, str]]:
    """Questions and answers."""
    if record.get("turns") is None:
        question = None if record.get("question") is None else text(record, "question")
        silent = record.get("questions") is not None and record.get("human_caption") is None
        if silent or record.get("sentences") is not None:
            return [(question, join_texts([sentence.text for sentence in sentences])[0])]
        return [(question, text(record, "human_caption"))]
    for other in ("question", "human_caption", "sentences", "questions"):
        if record.get(other) is not None:
            raise FieldError(f"the fields 'turns' and {other!r} exclude each other")
    turns = objects(record, "turns")
    return [(text(turn, "question"), text(turn, "answer")) for turn in turns]


def _sentences(record: Json) -> tuple[Sentence, ...]:
    if record.get("sentences") is None:
        return ()
    if record.get("human_caption") is not None:
        raise FieldError("the fields 'sentences' and 'human_caption' exclude each other")
    sentences = tuple(
        Sentence(text(entry, "text"), seconds(entry, "start_s", or_zero=True))
        for entry in objects(record, "sentences", least=0)
    )
    _check_order("sentences' start_s", [sentence.time_s for sentence in sentences])
    return sentences


def _questions(record: Json) -> tuple[Question, ...]:
    """What is asked in mid-video; an answer without times is due at once."""
    if record.get("questions") is None:
        return ()
    questions = []
    for entry in objects(record, "questions"):
        asked_s = seconds(entry, "video_s", or_zero=True)
        if (entry.get("answer") is None) == (entry.get("sentences") is None):
            raise FieldError(f"a question needs either an 'answer' or 'sentences', found {shown(entry)}")
        at_once = entry.get("answer") is not None
        sentences = (Sentence(text(entry, "answer"), asked_s),) if at_once else _sentences(entry)
        if sentences and sentences[0].time_s < asked_s:
            raise FieldError(f"an answer is due at {sentences[0].time_s:g} s, before its question at {asked_s:g} s")
        kind = "" if entry.get("kind") is None else text(entry, "kind")
        questions.append(Question(text(entry, "text"), asked_s, sentences, kind))
    _check_order("questions' video_s", [question.time_s for question in questions])
    return tuple(questions)


def _check_order(name: str, times: list[float]) -> None:
    if times != sorted(times):
        raise FieldError(f"the {name} run backwards: {shown(times)}")
