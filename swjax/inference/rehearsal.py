"""A memory that drops something for nothing, so that no stream waits for what that compiles."""

import numpy as np

from swjax.inference.lane import Lane
from swjax.inference.memory import KEEP_ALL, TEXT, Book, Kept, Memory, positions_of
from swjax.inference.memory.book import Moves, Sinks, incoming


def rehearse(memory: Memory, speaker: Lane, perceiver: Lane) -> None:
    """Fill a book until the policy finds it full, and move what it keeps in the first row of lanes without a stream.

    Thrice, as tokens are moved in one way while all layers hold the same, then kept for each, and then moved for each.

    Args:
        memory: the policy; for `KEEP_ALL` nothing is done.
        speaker: the lane that words are stored in.
        perceiver: the lane that sources are computed in; the same one where it does both.
    """
    if memory == KEEP_ALL:
        return
    book, number, units = Book(prompt=1, questions={0: np.zeros(1, np.int32)}), 0, perceiver.frame_units
    book.add_sources(np.arange(1, dtype=np.int32), np.zeros((3, 1), np.int32), TEXT)
    for word in range(2):  # one after each of two frames, so that how likely they were can be asked
        book.add_words(np.array([-1 - word], np.int32), np.zeros((3, 1), np.int32), word, [0], [0], word)
    for fills in (False, True, True):
        while fills and not memory.is_full(book):
            first = len(book.source_slots)
            if first + units > speaker.slots - speaker.left:
                return
            slots = np.arange(first, first + units, dtype=np.int32)
            book.add_sources(slots, np.broadcast_to(slots, (3, units)), number, np.arange(units, dtype=np.int32))
            number += 1
        sources, words = (np.arange(len(slots), dtype=np.int32) for slots in (book.source_slots, book.word_slots))
        kept = Kept(sources, words)
        if fills:
            kept = memory.keep(book, lambda: speaker.read(0, book.source_slots, speaker.left))
        count = np.shape(kept.sources)[-1] + (kept.fetched.length if kept.fetched else 0)
        moves = book.keep(kept, np.arange(count, dtype=np.int32), book.word_slots[: len(kept.words)])
        if kept.fetched is not None:
            moves = moves._replace(incoming=incoming(book, kept.fetched))
        moves = _turned_by_nothing(moves, positions_of(memory))
        speaker.move(0, moves, speaker.left)
        if perceiver is not speaker:
            perceiver.move(0, moves.of_sources(), 0)
    speaker.remember(0, book.said)


def _turned_by_nothing(moves: Moves, positions: str) -> Moves:
    """The same moves, by the programs that a policy's `positions` takes."""
    if positions == "kept":
        return moves
    if (new := moves.incoming) is not None and new.turn is None:
        turn = np.zeros((3, *new.keys.shape[:3:2]), np.int32)
        moves = moves._replace(incoming=new._replace(turn=turn))
    if positions != "contiguous":
        return moves._replace(turn=np.zeros((3, len(moves.target)), np.int32))
    one = np.ones(3, np.int32)  # sinks that are not turned are left as they are
    return moves._replace(sinks=(Sinks(0, 1, one, False), Sinks(-1, 1, one, True)))
