"""What rules have in common that keep a fixed share of each frame."""

from dataclasses import dataclass

from swjax.streaming.numbers import real


@dataclass(frozen=True)
class FixedShare:
    """A share of each frame's tokens stays, rounded down, and one at least.

    Attributes:
        share: of the tokens that stay.
    """

    share: float = 0.3

    def __post_init__(self) -> None:
        real("the share that stays", self.share, least=0, most=1)
