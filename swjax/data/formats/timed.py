"""Words and sentences with times, as the `sentences` of a manifest."""

from typing import Any

from swjax.data.fields import MAX_SECONDS, FieldError
from swjax.data.json_lines import json_type, shown
from swjax.data.text import check_text, glue_pieces
from swjax.plain import Json


def timed_sentences(entries: Any, name: str, *, since: float = 0.0) -> list[Json]:
    """Texts with the second from which each may be said, in the order of these.

    Args:
        entries: a list of [start, end, text], in seconds.
        name: the field that it stands in.
        since: the time at which the clip begins.

    Raises:
        FieldError: names the entry and what is wrong with it.
    """
    if not (isinstance(entries, list) and entries):
        raise FieldError(f"the field {name!r} must be a list of [start, end, text], found {json_type(entries)}")
    pieces = []
    for number, entry in enumerate(entries):
        where = f"{name}[{number}]"
        if not (isinstance(entry, list | tuple) and len(entry) == 3 and isinstance(entry[2], str)):
            raise FieldError(f"{where} must be [start, end, text], found {shown(entry)}")
        times = entry[:2]
        if not all(type(time) in (int, float) and 0 <= time <= MAX_SECONDS for time in times):
            raise FieldError(f"{where} must begin with two times from 0 to {MAX_SECONDS:g} s, found {shown(entry)}")
        pieces.append((check_text(entry[2], where), max(0.0, float(entry[0]) - since)))
    words = glue_pieces(sorted(pieces, key=lambda piece: piece[1]))
    if not words:
        raise FieldError(f"the field {name!r} has no words")
    return [{"text": text, "start_s": start} for text, start in words]
