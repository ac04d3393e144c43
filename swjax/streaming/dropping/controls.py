"""Controls: as many tokens as another rule keeps, whatever they show."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int32, UInt32

from swjax.streaming.arrays import XpArray
from swjax.streaming.dropping.fixed_share import FixedShare
from swjax.streaming.dropping.view import FrameView, lowest, share_of
from swjax.streaming.numbers import whole


@dataclass(frozen=True)
class Random(FixedShare):
    """Tokens drawn at random.

    Attributes:
        seed: of what is drawn; with the frame's number it says all.
    """

    seed: int = 0
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("the seed", self.seed)

    def keep(self, view: FrameView) -> Bool[XpArray, "U"]:
        """So many, each as likely."""
        index = view.xp.arange(view.exists.shape[0]).astype(np.uint32)
        return lowest(_mixed(index, index * 0 + view.number, self.seed).astype(np.float32), view, self.share)


@dataclass(frozen=True)
class Uniform(FixedShare):
    """Tokens at equal distances, by rows."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def keep(self, view: FrameView) -> Bool[XpArray, "U"]:
        """So many."""
        count, index = share_of(view, self.share), view.xp.arange(view.exists.shape[0])
        return (index + 1) * count // view.units > index * count // view.units


def _mixed(index: UInt32[XpArray, "U"], number: Int32[XpArray, "U"], seed: int) -> UInt32[XpArray, "U"]:
    """Bits that look random, the same in numpy and on every device: MurmurHash3's mixing of 32 bits."""
    bits = index * np.uint32(0x9E3779B1) + number.astype(np.uint32) * np.uint32(0x85EBCA77) + np.uint32(seed)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> np.uint32(shift))) * np.uint32(factor)
    return bits ^ (bits >> np.uint32(16))
