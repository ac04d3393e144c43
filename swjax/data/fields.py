"""Fields of a JSON object, checked one by one: every error names the field and what is wrong with it."""

from typing import Any

from swjax.data.json_lines import json_type, shown
from swjax.data.text import check_text
from swjax.plain import Json

MAX_SECONDS = 1e9
"""The latest time in a video, some thirty years: no file is longer, and timestamps of nanoseconds still hold it."""


class FieldError(ValueError):
    """What is wrong with one record."""


def objects(record: Json, name: str, *, least: int = 1) -> list[Json]:
    """A list of objects, as many as `least` says or more.

    Args:
        record: a JSON object.
        name: of the field.
        least: the fewest objects; 0 allows an empty list.

    Raises:
        FieldError: if the field is missing, or no such list.
    """
    value = field(record, name)
    if not (isinstance(value, list) and len(value) >= least and all(isinstance(entry, dict) for entry in value)):
        at_least = f", at least {least}" if least else ""
        raise FieldError(f"the field {name!r} must be a list of objects{at_least}, found {json_type(value)}")
    return value


def field(record: Json, name: str) -> Any:
    """A field that must be there."""
    if name not in record:
        raise FieldError(f"the field {name!r} is missing")
    return record[name]


def text(record: Json, name: str) -> str:
    """A text that is not blank, without blanks around it."""
    value = field(record, name)
    if not isinstance(value, str):
        raise FieldError(f"the field {name!r} must be text, found {json_type(value)}")
    if not value.strip():
        raise FieldError(f"the field {name!r} is empty")
    return check_text(value.strip(), f"field {name!r}")


def optional_seconds(record: Json, name: str, *, or_zero: bool = False) -> float | None:
    """A time, or None where the field is missing or null.

    Args:
        record, name, or_zero: as for `seconds`.

    Raises:
        FieldError: if the field is there and no such time.
    """
    return None if record.get(name) is None else seconds(record, name, or_zero=or_zero)


def seconds(record: Json, name: str, *, or_zero: bool = False) -> float:
    """A time from 0 to `MAX_SECONDS`.

    Args:
        record: a JSON object.
        name: of the field.
        or_zero: whether it may be 0.

    Raises:
        FieldError: if the field is missing, or no such time.
    """
    value = field(record, name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FieldError(f"the field {name!r} must be a number of seconds, found {json_type(value)}")
    if not value >= 0 or (value == 0 and not or_zero):  # NaN is not at least 0
        least = "at least" if or_zero else "above"
        raise FieldError(f"the field {name!r} must be {least} 0 seconds, found {shown(value)}")
    if value > MAX_SECONDS:
        raise FieldError(f"the field {name!r} must be at most {MAX_SECONDS:g} seconds, found {shown(value)}")
    return float(value)


def key(record: Json, default: str) -> str:
    """What the record is called: its `video_id`, or the default."""
    value = record.get("video_id")
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise FieldError(f"the field 'video_id' must be text or an integer, found {json_type(value)}")
    return check_text(str(value), "field 'video_id'")
