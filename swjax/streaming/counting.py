"""How position ids are counted: where the sources and the words of each step begin (paper, section 3).

A step is a frame with what arrives until the next one, and the words spoken then; in a design that speaks after the
whole video, a turn is one step. Within a step ids count on, those of sources from the step's first source id, those of
words from its first word id. A `Counting` says where these two begin. `build_layout` and the growth of a stream
(`swjax.streaming.growth`) both go from step to step by it, so a new counting is stated once: see CONTRIBUTING.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

from swjax.streaming.arrays import Flag, Integer


class StepEnds(NamedTuple):
    """Where a step has ended.

    Attributes:
        words: id of its first word, or that a first word would have had.
        source: the id behind its last source.
        target: the id behind its last word.
    """

    words: Integer
    source: Integer
    target: Integer


@dataclass(frozen=True)
class Counting:
    """A way to count ids. Its functions are given numbers or traced arrays, and numpy or jax.numpy as `xp`.

    Attributes:
        first_source: (where the step before has ended, whether a turn opens, xp) -> id of the step's first source.
        first_word: (where the step before has ended, the id behind this step's last source, xp) -> id of the step's
            first word.
        words_move_sources: whether the ids of sources depend on the words before them. Then a video is no continuous
            piece, and each frame is positioned like a video of its own.
    """

    first_source: Callable[[StepEnds, Flag, ModuleType], Integer]
    first_word: Callable[[StepEnds, Integer, ModuleType], Integer]
    words_move_sources: bool

    def end(self, before: StepEnds, next_source: Integer, words: Integer, xp: ModuleType) -> StepEnds:
        """Where a step ends.

        Args:
            before: where the one before it has ended.
            next_source: the id behind its last source.
            words: how many words it has.
            xp: numpy or jax.numpy.
        """
        first_word = self.first_word(before, next_source, xp)
        return StepEnds(first_word, next_source, first_word + words)


ONE = Counting(
    first_source=lambda before, opens_turn, xp: before.target,
    first_word=lambda before, next_source, xp: next_source,
    words_move_sources=True,
)
"""Offline and interleave: one count for all tokens, in the order in which they come."""

TWO = Counting(
    first_source=lambda before, opens_turn, xp: before.source,
    first_word=lambda before, next_source, xp: before.target,
    words_move_sources=False,
)
"""GDPE and GIPE: sources and targets are counted apart, sources from 0 and targets from `Design.first_target`."""

# Equation 1 of the paper, by the text around it (as printed it is wrong; see docs/differences.md). With V_i and A_i the
# extents of frame i and of the words spoken after it, and E_i the id at which those words begin:
# E_i = E_{i-1} + max(V_i, A_{i-1}). The first frame of a later turn waits for the last words instead.
OVERLAPPED = Counting(
    first_source=lambda before, opens_turn, xp: xp.where(opens_turn, before.target, before.words),
    first_word=lambda before, next_source, xp: xp.maximum(next_source, before.target),
    words_move_sources=True,
)
"""OSPE: a frame and what is spoken while it arrives begin at the same id, behind all that came before."""
