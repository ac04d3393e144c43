"""Masked spatial and temporal dropping of StreamingAssistant (2025, arXiv 2512.12560).

Beside what is as it was, tokens are dropped that are like a neighbor; of two neighbors never both, as only every
second place, in a checkerboard, may be dropped for that.
"""

from dataclasses import dataclass

from jaxtyping import Bool

from swjax.streaming.arrays import XpArray
from swjax.streaming.dropping.view import FrameView, checkerboard, likeness_to_neighbors, likeness_to_previous
from swjax.streaming.numbers import real


@dataclass(frozen=True)
class MSSAVT:
    """Tokens that are unlike what was at their place, and unlike their neighbors.

    Attributes:
        temporal: cosine with the frame before above which a token is dropped.
        spatial: cosine with a neighbor above which one of the checkerboard is; the paper has 0.2 and 0.5.
    """

    temporal: float = 0.2
    spatial: float = 0.5

    def __post_init__(self) -> None:
        real("mssavt's temporal", self.temporal, least=-1, most=1)
        real("mssavt's spatial", self.spatial, least=-1, most=1)

    def keep(self, view: FrameView) -> Bool[XpArray, "U"]:
        """Those that neither mask drops. A neighbor counts whether or not it is itself dropped for being as it was."""
        like_a_neighbor = checkerboard(view) & (likeness_to_neighbors(view) > self.spatial)
        return (likeness_to_previous(view) <= self.temporal) & ~like_a_neighbor
