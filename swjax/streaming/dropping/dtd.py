"""Differential token drop of TimeChat-Online (Yao et al., 2025, arXiv 2504.17343): what is as it was is dropped.

A frame is compared with the one before, place by place. The first frame, and the first of another size, are kept whole.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool

from swjax.streaming.arrays import XpArray
from swjax.streaming.dropping.view import PIXELS, FrameView, likeness_to_previous
from swjax.streaming.numbers import real

PREVIOUS, LAST_KEPT = "previous", "last_kept"
"""What a place is compared with: the frame before, as in the paper, with which a slow drift is never seen; or the token
of that place that was kept last."""


@dataclass(frozen=True)
class DTD:
    """Tokens whose feature is unlike that at the same place before.

    Attributes:
        tau: cosine above which a token is dropped; the paper's 0.5 drops about 45 % and 0.25 about 85 %.
        against: `previous` or `last_kept`.
    """

    tau: float = 0.5
    against: str = PREVIOUS

    def __post_init__(self) -> None:
        real("dtd's tau", self.tau, least=-1, most=1)
        if self.against not in (PREVIOUS, LAST_KEPT):
            raise ValueError(f"dtd's against must be {PREVIOUS} or {LAST_KEPT}, got {self.against!r}")

    def keep(self, view: FrameView) -> Bool[XpArray, "U"]:
        """Those at or below the bound."""
        return likeness_to_previous(view) <= self.tau


@dataclass(frozen=True)
class PixelDTD:
    """Tokens whose pixels differ: the last picture of the frame from the first one of the frame before.

    Attributes:
        tau: mean difference of pixels, of 0 to 1, below which a token is dropped.
    """

    tau: float = 0.1
    needs: ClassVar[frozenset[str]] = frozenset({PIXELS})

    def __post_init__(self) -> None:
        real("dtd_pixels' tau", self.tau, least=0, most=1)

    def keep(self, view: FrameView) -> Bool[XpArray, "U"]:
        """Those at or above the bound."""
        assert view.pixels is not None, "it needs pixels"
        assert view.previous_pixels is not None, "it needs pixels"
        return ~view.has_previous | (abs(view.pixels - view.previous_pixels).mean(axis=-1) >= self.tau)
