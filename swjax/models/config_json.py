"""Values of a config.json, looked at before they are used."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swjax.plain import JsonView

_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Section:
    """An object of a config.json whose values are looked at before they are used; a null is as if it were not there."""

    content: JsonView
    name: str

    def has(self, key: str) -> bool:
        """Whether the section has a value for the key that is not null."""
        return self.content.get(key) is not None

    def get(self, key: str, default: object = None) -> Any:
        """The value of a key, or the default; without a default the key must be there."""
        if not self.has(key) and default is None:
            raise ValueError(f"{self.name} lacks {key!r}, which the model cannot do without")
        return self.content[key] if self.has(key) else default

    def section(self, key: str) -> "Section":
        """The object under a key."""
        content = self.get(key)
        if not isinstance(content, Mapping):
            raise self.refuse(key, content, "an object")
        return Section(content, key)

    def number(self, key: str, default: float | None = None) -> float:
        """A number above 0."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST:
            raise self.refuse(key, value, "a number above 0")
        return value

    def count(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number, `least` or more.

        Args:
            key: where it stands in the section.
            default: what a missing one is; None if the key must be there.
            least: the smallest that can be used.

        Raises:
            ValueError: the key is missing and has no default, or its value is no such number.
        """
        return self.whole(key, self.get(key, default), least)

    def counts(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers, 0 or more."""
        values = self.get(key)
        if not isinstance(values, list | tuple):
            raise self.refuse(key, values, "a list of whole numbers")
        return tuple(self.whole(key, value, 0) for value in values)

    def first(self, key: str, default: int) -> int:
        """The first of several token ids, or the one."""
        value = self.get(key, default)
        return self.whole(key, value[0] if isinstance(value, list) and value else value, 0)

    def flag(self, key: str) -> bool:
        """A truth value; false if the key is not there."""
        value = self.get(key, False)
        if not isinstance(value, bool):
            raise self.refuse(key, value, "true or false")
        return value

    def whole(self, key: str, value: object, least: int) -> int:
        """A value as a whole number, `least` or more.

        Args:
            key: of the value, for the error.
            value: as JSON has it; a float without a fraction is taken for an integer.
            least: the smallest that can be used; the largest is that of int32.

        Raises:
            ValueError: it is no such number.
        """
        is_bool = isinstance(value, bool)
        if is_bool or not isinstance(value, int | float) or not least <= value <= _LARGEST or value != int(value):
            raise self.refuse(key, value, f"a whole number from {least} on")
        return int(value)

    def refuse(self, key: str, value: object, wanted: str) -> ValueError:
        """The error about a value that cannot be used, for the caller to raise.

        Args:
            key: of the value.
            value: as JSON has it; its first 60 characters are shown.
            wanted: what it must be, to end the sentence "it must be ...".
        """
        shown = repr(value)
        return ValueError(f"{self.name}: {key} is {shown[:60]}{'...' * (len(shown) > 60)}; it must be {wanted}")
