"""Rules of dropping: which tokens of a frame reach the decoder. A new one is a file here and a row of the table.

A frame is encoded, looked at, and laid out with the tokens that stay. These have the ids that they would have had, and
what comes later counts on as if the frame were whole. A frame may keep nothing: it is seen all the same, and words
follow it. Where sources and words are stored in one order of arrival it keeps its last token, from which the next word
follows.
"""

from collections.abc import Callable

from swjax.streaming.dropping.controls import Random, Uniform
from swjax.streaming.dropping.dtd import DTD, PixelDTD
from swjax.streaming.dropping.evs import EVS
from swjax.streaming.dropping.mssavt import MSSAVT
from swjax.streaming.dropping.vidcom2 import VidCom2
from swjax.streaming.dropping.view import FEATURES, Drop, FrameView, needs_of
from swjax.streaming.named import make_named

DROPS: dict[str, Callable[..., Drop]] = {
    "dtd": DTD,
    "dtd_pixels": PixelDTD,
    "mssavt": MSSAVT,
    "evs": EVS,
    "vidcom2": VidCom2,
    "random": Random,
    "uniform": Uniform,
}
"""Rules by name: frozen dataclasses of numbers and words. Others may be added from outside."""

__all__ = [
    "DROPS",
    "DTD",
    "EVS",
    "MSSAVT",
    "Drop",
    "FrameView",
    "PixelDTD",
    "Random",
    "Uniform",
    "VidCom2",
    "drop_of",
    "without_features",
]


def drop_of(text: str) -> Drop | None:
    """A rule from its name and its numbers: `dtd`, `dtd:tau=0.25`, `evs:share=0.2`; `none` for none.

    Raises:
        ValueError: if there is no such rule, it has no such number, or a number is given twice or out of range.
    """
    table: dict[str, Callable[..., Drop | None]] = {"none": lambda: None, **DROPS}
    return make_named(text, table, "rule of dropping")


def without_features() -> list[str]:
    """Names of the rules that need no features, by which data can be prepared for training."""
    return [name for name, make in DROPS.items() if FEATURES not in needs_of(make())]
