"""The tokens of one stream that have been laid out and not written, in the order in which passes take them."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from swjax.inference.parts import Arrival, Group, Part, Share
from swjax.inference.track import Tokens


class GroupQueue:
    """Groups that wait, the next first.

    Args:
        keeps_all: whether what has been written is remembered, to be written again (`start_again`).
    """

    def __init__(self, *, keeps_all: bool) -> None:
        self._groups: deque[Group] = deque()
        self._keeps_all = keeps_all
        self._written: list[Group] = []

    def add(self, tokens: Tokens, *, is_target: bool = False, arrival: Arrival | None = None) -> None:
        """Puts a group behind those that wait.

        Args:
            tokens: those of the group.
            is_target: whether they are words, not sources.
            arrival: the frame or image whose tokens they are; None for text and words. It need not be encoded yet.
        """
        self._groups.append(Group(tokens, is_target, arrival))

    @property
    def left(self) -> int:
        """Tokens that wait."""
        return sum(group.left for group in self._groups)

    @property
    def is_empty(self) -> bool:
        """Whether no group waits."""
        return not self._groups

    @property
    def has_words(self) -> bool:
        """Whether words wait."""
        return any(group.is_target for group in self._groups)

    def to_encode(self) -> Iterator[Arrival]:
        """Frames whose features are needed, the next first."""
        for group in self._groups:
            if group.arrival is not None and group.arrival.cell is None:
                yield group.arrival

    def take(self, share: Share, room: int, *, hold: int) -> None:
        """Moves tokens into a share, up to the first frame that is not encoded.

        Args:
            share: what the stream has in a pass.
            room: most tokens of the share.
            hold: tokens at the end that still wait.
        """
        while (waiting := self.left - hold) > 0 and len(share) < room:
            group = self._groups[0]
            if group.arrival is not None and group.arrival.cell is None:
                return
            first, group.taken = group.taken, group.taken + min(room - len(share), group.left, waiting)
            share.parts.append(Part(group, first, group.taken))
            if not group.left:
                self.note(self._groups.popleft())

    def note(self, group: Group) -> None:
        """A group has been taken whole."""
        if self._keeps_all:
            self._written.append(group)

    def start_again(self) -> None:
        """Puts all that has been written in front once more; frames are encoded again."""
        for group in reversed(self._written):
            arrival = None if group.arrival is None else replace(group.arrival, cell=None)
            self._groups.appendleft(Group(group.tokens, group.is_target, arrival))
        self._written.clear()
