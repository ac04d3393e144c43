"""JSON lines, read in one way wherever they come from: manifests, predictions, grades, logs.

A line ends at "\\n", "\\r\\n" or "\\r" and nowhere else: U+2028, U+2029, U+0085 and the other characters that
`str.splitlines` cuts at may stand inside of JSON text (RFC 8259), and captions copied from the web have them. A byte
order mark before the first line is skipped.
"""

import codecs
import json
from collections.abc import Iterator, Sequence
from typing import Any

from swjax.plain import Json
from swjax.storage import AnyPath, is_remote

LONGEST_QUOTE = 80
"""Characters of a value that a message repeats."""

_OTHER_ENCODINGS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class JsonLineError(ValueError):
    """A line is not a JSON object that can be read."""


def read_lines(path: AnyPath) -> list[tuple[int, bytes]]:
    """The lines of a file that are not blank, each with its number, from 1.

    Raises:
        OSError: if the file cannot be read.
        JsonLineError: if the whole file is UTF-16 or UTF-32.
    """
    content = path.read_bytes()
    if content.startswith(_OTHER_ENCODINGS):
        raise JsonLineError("it is UTF-16; save it as UTF-8")
    # Bytes are cut at "\n", "\r\n" and "\r" alone; text would be cut within captions.
    lines = content.removeprefix(codecs.BOM_UTF8).splitlines()
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def parse_line(line: bytes | str) -> Json:
    """The JSON object in a line.

    Raises:
        JsonLineError: whatever is wrong with it.
    """
    try:
        record = json.loads(line.decode("utf-8-sig") if isinstance(line, bytes) else line)
    except UnicodeDecodeError as error:
        raise JsonLineError(f"not UTF-8 text: byte {line[error.start]:#04x} at position {error.start}") from error
    except json.JSONDecodeError as error:
        raise JsonLineError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise JsonLineError("not JSON that can be read: nested too deeply") from error
    except ValueError as error:  # Python reads no number of more than 4,300 digits
        raise JsonLineError("not JSON that can be read: a number has too many digits") from error
    if not isinstance(record, dict):
        raise JsonLineError(f"expected a JSON object, found {json_type(record)}")
    return record


def cut_half_line(path: AnyPath) -> None:
    """Cut off what follows the last line end of a file that is appended to: a killed process leaves half a line."""
    if is_remote(path) or not path.exists():  # a log in a bucket is written as a whole
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def readable_lines(path: AnyPath, needed: Sequence[str] = ()) -> Iterator[Json]:
    """The objects of a log, without the lines that a crash or a full disk has spoiled; none if there is no file.

    Args:
        path: the file.
        needed: fields that a line must have.
    """
    if not path.exists():
        return
    for _, line in read_lines(path):
        try:
            record = parse_line(line)
        except JsonLineError:
            continue
        if all(name in record for name in needed):
            yield record


def json_type(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value)) or f"the number {shown(value)}"


def shown(value: Any) -> str:
    """A value as a message repeats it: not longer than a line."""
    text = str(value)
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}... ({len(text)} characters)"
