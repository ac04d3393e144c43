"""What was said last, read again with what has arrived since: the measurement of the rule `verify` (LiveStar, 2025).

The words, and the token before them, are run again in their places, with the new frame among what they see; their ids
stay. If they still hold, what has been computed of them stays too: then they stand as if the frame had come before
they were said.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int32

from swjax.inference.rows import Piece
from swjax.inference.track import Tokens, join
from swjax.streaming import surprise


class Refit(NamedTuple):
    """Tokens that were run again.

    Attributes:
        losses: cross entropy of the tokens that followed them, in nats.
        first: slot of the row at which `piece` is to be stored.
        piece: their keys and values, and what stands beside them.
    """

    losses: Float[Array, "n"]
    first: int
    piece: Piece


Rerun = Callable[[Tokens, Int32[np.ndarray, "n"]], Refit]
"""From tokens, and those that followed them, to what comes of running them again; nothing is stored."""


class LastSaid:
    """The utterance that was said last, of one stream.

    Attributes:
        is_whole: whether there is one that has ended.
    """

    def __init__(self) -> None:
        self._pairs: list[tuple[Tokens, int]] = []
        self._before: np.ndarray | None = None
        self.is_whole = False

    def forget(self) -> None:
        """Nothing has been said."""
        self._pairs, self._before, self.is_whole = [], None, False

    def note(self, fed: Tokens, token: int, *, begins: bool) -> None:
        """A token has been chosen.

        Args:
            fed: what was written in the pass that chose it; its last predicts the token.
            token: the token.
            begins: whether it is the first of an utterance.
        """
        if begins:
            self.forget()
        count = len(fed.token_ids)
        self._pairs.append((fed.part(count - 1, count), token))

    def end(self) -> None:
        """The utterance has ended."""
        self.is_whole = bool(self._pairs)

    def measure(self, rerun: Rerun, visible: int) -> tuple[float, Refit]:
        """How many times as perplexed the model is by it as when it said it, and what comes of running it now.

        Args:
            rerun: runs tokens again.
            visible: sources that words may see now.
        """
        queries = join([query for query, _ in self._pairs])
        following = np.array([token for _, token in self._pairs], np.int32)
        if self._before is None:
            self._before = np.asarray(rerun(queries, following).losses)
        now = rerun(queries._replace(stop=np.full_like(queries.stop, visible)), following)
        return surprise(np.asarray(now.losses), self._before), now
