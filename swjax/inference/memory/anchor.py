"""Position ids of a stream without end: what is turned when a memory drops tokens, so that ids do not drift apart.

Attention sees differences of ids alone. The prompt and the first words, the *sinks*, keep theirs while those of the
window grow; what a policy's `positions` says is done about it, once tokens have been dropped:

- `kept`: nothing.
- `contiguous`: the sinks are turned to stand right before the window, as StreamingLLM counts; the window, which is many
  times as large, stays as it is.
- `together`: all ids are set back by one number, rarely. No difference changes: it keeps ids small, where their angles
  are exact.
- `apart`: the window's sources are set back, rarely, to where they would stand behind the prompt in a stream that has
  just begun, and its words likewise behind the first ones. Differences between the two groups change. Where words are
  counted from a gap, half of it is as far as sources come, so that they never reach the words' ids.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from swjax.inference.memory.book import Book
from swjax.inference.numbers import whole

POSITIONS = ("kept", "contiguous", "together", "apart")


def check_positions(positions: str, reanchor_at: int) -> None:
    """Refuse what a policy cannot do about position ids.

    Raises:
        ValueError: if `positions` is none of `POSITIONS`, or `reanchor_at` is no count.
    """
    if positions not in POSITIONS:
        raise ValueError(f"a memory's positions must be one of {', '.join(POSITIONS)}, got {positions!r}")
    whole("a memory's reanchor_at", reanchor_at, least=1)


Ids = Int32[np.ndarray, "3"]


class Anchored(NamedTuple):
    """By how many ids tokens are turned: temporal, height and width.

    Attributes:
        source_sinks, word_sinks: the prompt, and the first words.
        sources, words: all others, and those that are still to come.
    """

    source_sinks: Ids
    word_sinks: Ids
    sources: Ids
    words: Ids

    def turns(self, sinks: tuple[int, int], sources: int, words: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each source, and of each word: int32[3, sources] and int32[3, words].

        Args:
            sinks: how many of the sources, and of the words, are sinks; they stand first.
            sources, words: how many there are in all, the sinks included.
        """
        ways = (self.source_sinks, self.sources, sinks[0], sources), (self.word_sinks, self.words, sinks[1], words)
        turned = [np.where(np.arange(count) < first, one[:, None], other[:, None]) for one, other, first, count in ways]
        return turned[0], turned[1]


def anchored(book: Book, sinks: tuple[int, int], *, positions: str, joint: bool, reanchor_at: int) -> Anchored | None:
    """What to turn; None for nothing.

    Args:
        book: what has been kept.
        sinks: how many of its sources, and of its words, are sinks; they stand first.
        positions: one of `POSITIONS`.
        joint: whether sources and words are counted in one.
        reanchor_at: ids after which all are set back.
    """
    zero = np.zeros(3, np.int32)
    groups = [
        tuple(part.reshape(3, -1) for part in (ids[..., :count], ids[..., count:]))
        for ids, count in zip((book.ids, book.word_ids), sinks, strict=True)
    ]
    if positions == "kept":
        return None
    if positions == "together":
        newest = max(int(ids.max(initial=0)) for _, ids in groups)
        back = np.full(3, -(newest - reanchor_at // 2), np.int32)
        return Anchored(back, back, back, back) if newest > reanchor_at else None
    if joint:
        gap = _gap(*(np.concatenate(parts, axis=1) for parts in zip(*groups, strict=True)))
        gaps = [gap, np.full(3, gap.max(), np.int32)]
    else:
        gaps = [_gap(*group) for group in groups]
    if positions == "contiguous":
        return Anchored(gaps[0], gaps[1], zero, zero) if any(gap.any() for gap in gaps) else None
    gaps = [gap * (gap.max() >= reanchor_at) for gap in gaps]
    return Anchored(zero, zero, -gaps[0], -gaps[1]) if any(gap.any() for gap in gaps) else None


def _gap(sinks: Int32[np.ndarray, "3 m"], window: Int32[np.ndarray, "3 n"]) -> Ids:
    """Ids between sinks and window."""
    if not sinks.shape[1] or not window.shape[1]:
        return np.zeros(3, np.int32)
    return np.maximum(0, window.min(axis=1) - sinks.max(axis=1) - 1).astype(np.int32)
