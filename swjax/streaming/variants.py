"""The position designs as a table: a new design is one row, with a `Counting` of its own if it counts in a new way."""

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from swjax.streaming.arrays import Integer
from swjax.streaming.counting import ONE, OVERLAPPED, TWO, Counting


class Storage(enum.Enum):
    """The order in which tokens are stored, and with it who sees whom."""

    CHAT = enum.auto()
    """Chat order, causal: the answer sees the whole video."""
    ARRIVAL = enum.auto()
    """Order of arrival, causal: a frame sees the words that were spoken before it."""
    GROUPED = enum.auto()
    """Targets in reverse before the sources, so that the keys a target sees are one span (the group mask, figure 3)."""


@dataclass(frozen=True)
class Design:
    """What tells one position design from another.

    Attributes:
        storage: order of storage and visibility.
        counting: how ids are counted.
        summary: the design in a few words, for figures and help.
        from_the_gap: whether the targets' own count begins at the gap instead of 0.
        alias: another name; those in `DESIGNS` are the names in the code of the paper's authors.
    """

    storage: Storage
    counting: Counting
    summary: str
    from_the_gap: bool = False
    alias: str | None = None

    @property
    def grouped(self) -> bool:
        """Whether sources never see targets, which are stored in reverse before them."""
        return self.storage is Storage.GROUPED

    @property
    def speaks_while_watching(self) -> bool:
        """Whether words are spoken between the frames, and not after the last one."""
        return self.storage is not Storage.CHAT

    @property
    def frame_by_frame(self) -> bool:
        """Whether each frame is positioned like a video of its own, since words come between the frames' ids."""
        return self.speaks_while_watching and self.counting.words_move_sources

    def first_target(self, gap: Integer) -> Integer:
        """First id of the targets where they are counted apart."""
        return gap if self.from_the_gap else 0


DESIGNS: dict[str, Design] = {
    "offline": Design(Storage.CHAT, ONE, "one count, the answer after the video", alias="origin"),
    "offline_gdpe": Design(Storage.CHAT, TWO, "two counts, the answer after the video", alias="batch"),
    "interleave": Design(Storage.ARRIVAL, ONE, "one count, frames and words in turn"),
    "ospe": Design(Storage.GROUPED, OVERLAPPED, "words and the next frame overlap", alias="overlap"),
    "gdpe": Design(Storage.GROUPED, TWO, "two counts, both from 0", alias="group"),
    "gipe": Design(Storage.GROUPED, TWO, "two counts, words from the gap", from_the_gap=True, alias="gap"),
}
"""All designs by name (paper, section 3). A row that is added here, from anywhere, is known everywhere by its name."""


class _Names(type):
    """Iterating over `Variant` gives the names of all designs, those added later included."""

    def __iter__(cls) -> "Iterator[Variant]":
        return map(Variant, DESIGNS)

    def __len__(cls) -> int:
        return len(DESIGNS)

    def __contains__(cls, name: object) -> bool:
        return isinstance(name, str) and any(
            name.lower() in (known.lower(), row.alias) for known, row in DESIGNS.items()
        )

    def __getitem__(cls, name: str) -> "Variant":
        """As of an enumeration: `Variant["GDPE"]`."""
        return Variant(name)


class Variant(str, metaclass=_Names):
    """The name of a position design in `DESIGNS`."""

    OFFLINE: ClassVar["Variant"]
    OFFLINE_GDPE: ClassVar["Variant"]
    INTERLEAVE: ClassVar["Variant"]
    OSPE: ClassVar["Variant"]
    GDPE: ClassVar["Variant"]
    GIPE: ClassVar["Variant"]

    _made: ClassVar[dict[str, "Variant"]] = {}

    def __new__(cls, value: object) -> "Variant":
        """The one object for a design's name.

        Args:
            value: a name or an alias, in any case.

        Raises:
            ValueError: if no design has it.
        """
        wanted = str(value).lower()
        for name, design in DESIGNS.items():
            if wanted in (name.lower(), design.alias):
                return cls._made.setdefault(name, super().__new__(cls, name))
        known = (f"{name} (alias {design.alias})" if design.alias else name for name, design in DESIGNS.items())
        raise ValueError(f"unknown variant {value!r}; choose one of: {', '.join(known)}")

    @property
    def value(self) -> str:
        """The design's name, plain, as a member of an enumeration has it."""
        return str(self)

    @property
    def name(self) -> str:
        """The name of the member: `GDPE` of `Variant.GDPE`."""
        return self.upper()


for _name in DESIGNS:
    setattr(Variant, _name.upper(), Variant(_name))
