"""Rows that grow: the lanes of an engine get more slots before a stream runs over an end of its row."""

from collections.abc import Sequence
from concurrent.futures import Future

from swjax.inference.lane import Lane
from swjax.inference.parts import Share
from swjax.inference.room import LOOK_AHEAD, padded_size, slots_to_add
from swjax.inference.stream import Stream


class Growth:
    """How the rows of an engine's lanes grow.

    Args:
        speaker, perceiver: the lanes, or twice the one that does both.
        max_slots: up to which the speaker's rows may grow.
        ahead: whether larger rows are compiled before a stream needs them, beside the passes that run, so that nobody
            waits. It costs more: also passes that will not be run again are compiled, and rows that are never needed.
    """

    def __init__(self, speaker: Lane, perceiver: Lane, *, max_slots: int, ahead: bool):
        self._speaker, self._perceiver = speaker, perceiver
        self._max_slots, self._ahead = max_slots, ahead

    def is_ready(self, stream: Stream) -> bool:
        """Whether no larger rows must be waited for; those that the stream will need are compiled before it does.

        Rows of a bounded memory are as long as they will ever be (`fit`), so nothing is compiled for these.
        """
        if not self._ahead or stream.room(1, 1) is not None:
            return True
        lowest, highest = stream.ends
        ready = True
        for lane in self._lanes:
            for end in ((int(lowest * LOOK_AHEAD), 0), (0, int(highest * LOOK_AHEAD))):
                self._prepare(lane, self._slots_to_add(lane, stream, *end))
            ready &= self._prepare(lane, self._slots_to_add(lane, stream, lowest, highest)).done()
        return ready

    def fit(self, stream: Stream, frame_units: int, chunk: int, streams: Sequence[Stream]) -> None:
        """Make rows as long as a stream with a bounded memory will ever need them, so that none grows under way.

        Args:
            stream: the stream, before its first pass.
            frame_units: tokens of its next frame.
            chunk: tokens of the largest pass.
            streams: all that are open, whose origins move with their rows.

        Raises:
            ValueError: if rows may not be so long.
        """
        needed = stream.room(frame_units, chunk)
        if needed is None:
            return
        for lane in self._lanes:
            left = stream.origin if lane is self._speaker else 0
            added = max(0, needed[0] - left) if lane is self._speaker else 0, max(0, needed[1] - (lane.slots - left))
            if sum(added) and lane is self._speaker and lane.slots + sum(added) > self._max_slots:
                raise ValueError(
                    f"the stream's memory needs {needed[0]} slots for words and {needed[1]} for sources, and rows have "
                    f"{left} and {lane.slots - left} and may have {self._max_slots} in all; give the engine more "
                    "(slots, word_slots, max_slots), or the memory smaller budgets"
                )
            if sum(added):
                self._grow(lane, added, streams)

    def _grow(self, lane: Lane, added: tuple[int, int], streams: Sequence[Stream]) -> None:
        if self._ahead:
            self._prepare(lane, added).result()
        lane.grow(*added)
        for other in streams if lane is self._speaker else ():
            other.shift(added[0])

    def make_room(self, stream: Stream, share: Share, streams: Sequence[Stream]) -> bool:
        """Double the end of the rows that would run over, as far as the limit allows; false if that is not enough.

        Args:
            stream: the stream that needs room.
            share: what the next pass writes of it.
            streams: all that are open, whose origins move with their rows.
        """
        if not share.parts:
            return True
        slots = [part.group.tokens.slots for part in share.parts]
        lowest = min(int(piece.min()) for piece in slots)
        apart = self._perceiver is not self._speaker
        highest = max(int(piece[0]) + padded_size(len(piece)) if apart else int(piece.max()) + 1 for piece in slots)
        for lane in self._lanes:
            added = self._slots_to_add(lane, stream, lowest, highest)
            if added is None:
                return False
            if sum(added):
                self._grow(lane, added, streams)
        return True

    @property
    def _lanes(self) -> tuple[Lane, ...]:
        return (self._speaker, self._perceiver) if self._perceiver is not self._speaker else (self._speaker,)

    def _slots_to_add(self, lane: Lane, stream: Stream, lowest: int, highest: int) -> tuple[int, int] | None:
        if lane is self._speaker:
            left, slots = stream.origin, lane.slots
            return slots_to_add(left, slots - left, lowest, highest, self._max_slots - slots)
        return slots_to_add(0, lane.slots, 0, highest, max(lane.slots, highest))

    def _prepare(self, lane: Lane, added: tuple[int, int] | None) -> Future[None]:
        return lane.prepare(lane.slots + sum(added or ()))
