"""The sizes for which the passes of an engine are compiled."""

from collections.abc import Sequence
from dataclasses import dataclass

CHUNK_SIZES = (16, 64, 256)
"""Tokens of frames in a pass beside the word; each size is compiled once."""

TILE = 8
"""What the tokens of a pass are a multiple of: matrix units take no fewer rows."""


@dataclass(frozen=True)
class Sizes:
    """What an engine holds at first and computes at a time.

    Attributes:
        rows, frame_units, slots, word_slots, max_slots, chunk_sizes: as `BatchEngine` is given them.
        apart: whether sources and words are stored in different lanes.
        fewest_tokens: of a pass, in all rows together (`Weights.fewest_tokens`).

    Raises:
        ValueError: if they do not fit together.
    """

    rows: int
    frame_units: int
    slots: int
    word_slots: int
    max_slots: int
    chunk_sizes: Sequence[int]
    apart: bool
    fewest_tokens: int = 1

    def __post_init__(self) -> None:
        chunks = tuple(self.chunk_sizes)
        if self.rows < 1 or self.frame_units < 1 or not chunks or sorted(set(chunks)) != list(chunks):
            raise ValueError(
                f"an engine needs rows and frame_units of at least 1 and ascending chunk_sizes, got rows {self.rows}, "
                f"frame_units {self.frame_units} and chunk_sizes {chunks}"
            )
        if chunks[0] < 2 or not 2 <= self.slots <= self.max_slots:
            raise ValueError(
                f"chunks must be of at least 2 tokens and slots from 2 to max_slots, got chunk_sizes "
                f"{chunks}, slots {self.slots} and max_slots {self.max_slots}"
            )
        if not 0 < self.word_slots < self.slots:
            raise ValueError(f"word_slots must be from 1 to slots - 1, got {self.word_slots} of {self.slots}")
        if len(self.passes) == 1:
            raise ValueError(f"rows with {self._room} slots are too small for chunks of {chunks[0]} tokens")

    @property
    def _room(self) -> int:
        # What is written at once must fit into a row, also into one that has sources alone.
        return self.slots - self.word_slots if self.apart else self.slots

    @property
    def passes(self) -> tuple[int, ...]:
        """Lengths to which the rows of a pass are padded, ascending: one word, and chunks beside one."""
        tiles = (-(-(1 + size) // TILE) * TILE for size in self.chunk_sizes)
        return tuple(sorted({-(-self.fewest_tokens // self.rows), *(size for size in tiles if size <= self._room)}))

    def pass_for(self, tokens: int) -> int:
        """The shortest pass that holds so many tokens of a row, or the longest one."""
        return next((size for size in self.passes if size >= tokens), self.passes[-1])

    def inbox_frames(self, frame_units: int) -> int:
        """Frames of a row that may wait encoded: as many as the longest pass takes, and one."""
        return max(2, -(-self.passes[-1] // frame_units) + 1)
