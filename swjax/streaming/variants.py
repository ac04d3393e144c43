"""The position designs as a table: a new design is one function and one row."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType


class Variant(enum.StrEnum):
    """A position design of the paper (section 3)."""

    OFFLINE = "offline"
    OFFLINE_GDPE = "offline_gdpe"
    GDPE = "gdpe"
    GIPE = "gipe"

    @classmethod
    def _missing_(cls, value: object) -> "Variant":
        name = ALIASES.get(str(value).lower(), str(value).lower())
        for member in cls:
            if member.value == name:
                return member
        known = ", ".join(f"{variant.value} (alias {alias})" for alias, variant in ALIASES.items())
        raise ValueError(f"unknown variant {value!r}; choose one of: {known}")


ALIASES: Mapping[str, Variant] = MappingProxyType(
    {"origin": Variant.OFFLINE, "batch": Variant.OFFLINE_GDPE, "group": Variant.GDPE, "gap": Variant.GIPE}
)
"""The names that the paper's authors give to the designs in their code."""


@dataclass(frozen=True)
class Design:
    """What tells one position design from another.

    Attributes:
        grouped: whether a target sees only the sources that have arrived when it is spoken. Grouped layouts store
            the targets in reverse order before the sources; the others keep chat order and a causal mask.
        first_target: maps (first id free after the sources, gap) to the id of the first target.
    """

    grouped: bool
    first_target: Callable[[int, int], int]


def _after_the_sources(sources_end: int, gap: int) -> int:
    return sources_end


def _from_zero(sources_end: int, gap: int) -> int:
    return 0


def _from_the_gap(sources_end: int, gap: int) -> int:
    return gap


DESIGNS: Mapping[Variant, Design] = MappingProxyType(
    {
        Variant.OFFLINE: Design(grouped=False, first_target=_after_the_sources),
        Variant.OFFLINE_GDPE: Design(grouped=False, first_target=_from_zero),
        Variant.GDPE: Design(grouped=True, first_target=_from_zero),
        Variant.GIPE: Design(grouped=True, first_target=_from_the_gap),
    }
)
