"""One of a table of frozen dataclasses from a line of text: `window:frames=32,words=256`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeVar

Made = TypeVar("Made")


def make_named(text: str, table: Mapping[str, Callable[..., Made]], kind: str) -> Made:
    """Make what a text names.

    Args:
        text: a name of the table, and after a colon the fields that are not to have their defaults, which say the
            fields' types: numbers or words; None is a whole number.
        table: what makes each.
        kind: what the table holds, for messages.

    Raises:
        ValueError: if there is no such name, it has no such field, or a value is given twice, of another type or out of
            range.
    """
    name, _, given = text.partition(":")
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; choose one of {', '.join(table)}")
    make = table[name]
    fields = dataclasses.fields(make) if dataclasses.is_dataclass(make) else ()
    types: dict[str, type] = {one.name: int if one.default is None else type(one.default) for one in fields}
    has = f"takes {', '.join(types)}, written as {name}:{next(iter(types))}=8" if types else "takes no numbers"
    values: dict[str, object] = {}
    for one in given.split(",") if given else []:
        key, equals, value = one.partition("=")
        if key not in types or not equals:
            raise ValueError(f"{kind} {name} {has}, got {one!r}")
        if key in values:
            raise ValueError(f"{kind} {text!r}: {key} is given twice")
        try:
            if len(value) > 40:
                raise ValueError
            values[key] = types[key](value)
        except ValueError:
            raise ValueError(f"{key} of {kind} {name} must be of type {types[key].__name__}, got {value!r}") from None
    return make(**values)
