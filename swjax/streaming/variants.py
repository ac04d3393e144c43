"""The position designs as a table: a new design is one row, with a new way of counting if it needs one."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


class Variant(enum.StrEnum):
    """A position design of the paper (section 3)."""

    OFFLINE = "offline"
    OFFLINE_GDPE = "offline_gdpe"
    INTERLEAVE = "interleave"
    OSPE = "ospe"
    GDPE = "gdpe"
    GIPE = "gipe"

    @classmethod
    def _missing_(cls, value: object) -> "Variant":
        name = ALIASES.get(str(value).lower(), str(value).lower())
        for member in cls:
            if member.value == name:
                return member
        aliases = {variant: f" (alias {alias})" for alias, variant in ALIASES.items()}
        known = ", ".join(f"{variant.value}{aliases.get(variant, '')}" for variant in cls)
        raise ValueError(f"unknown variant {value!r}; choose one of: {known}")


ALIASES: Mapping[str, Variant] = MappingProxyType(
    {
        "origin": Variant.OFFLINE,
        "batch": Variant.OFFLINE_GDPE,
        "overlap": Variant.OSPE,
        "group": Variant.GDPE,
        "gap": Variant.GIPE,
    }
)
"""The names that the paper's authors give to the designs in their code, where they differ from ours."""


class Storage(enum.Enum):
    """The order in which tokens are stored, and with it who sees whom."""

    CHAT = enum.auto()
    """Chat order, causal: the answer sees the whole video."""
    ARRIVAL = enum.auto()
    """Order of arrival, causal: a frame sees the words that were spoken before it."""
    GROUPED = enum.auto()
    """Targets in reverse before the sources, so that the keys a target sees (the group mask) are one span."""


class Counting(enum.Enum):
    """How position ids are counted."""

    ONE = enum.auto()
    """One count for all tokens, in storage order."""
    TWO = enum.auto()
    """Sources and targets are counted apart: sources from 0, targets from `Design.first_target`."""
    OVERLAPPED = enum.auto()
    """A frame and what is spoken while it arrives start at the same id, behind all that came before."""


@dataclass(frozen=True)
class Design:
    """What tells one position design from another.

    Attributes:
        storage: order of storage and visibility.
        counting: how ids are counted.
        from_the_gap: whether the targets' own count begins at the gap instead of 0.
    """

    storage: Storage
    counting: Counting
    from_the_gap: bool = False

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
        return self.storage is Storage.ARRIVAL or self.counting is Counting.OVERLAPPED

    def first_target(self, gap: int) -> int:
        """First id of the targets where they are counted apart."""
        return gap if self.from_the_gap else 0


DESIGNS: Mapping[Variant, Design] = MappingProxyType(
    {
        Variant.OFFLINE: Design(Storage.CHAT, Counting.ONE),
        Variant.OFFLINE_GDPE: Design(Storage.CHAT, Counting.TWO),
        Variant.INTERLEAVE: Design(Storage.ARRIVAL, Counting.ONE),
        Variant.OSPE: Design(Storage.GROUPED, Counting.OVERLAPPED),
        Variant.GDPE: Design(Storage.GROUPED, Counting.TWO),
        Variant.GIPE: Design(Storage.GROUPED, Counting.TWO, from_the_gap=True),
    }
)
