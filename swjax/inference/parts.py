"""What one stream hands to a pass: groups of tokens, the parts of them that it takes, and what that has cost."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Array, Bool, Int32

from swjax.inference.frames import Frame
from swjax.inference.prompt import Piece
from swjax.inference.track import Tokens


@dataclass
class Arrival:
    """A frame that has arrived.

    Attributes:
        frame: the frame.
        number: frames of the video before it.
        arrived_s: when it was handed over, by the engine's clock.
        last: whether it ends the video.
        cell: of the row's inbox in which its features are, once it is encoded.
        keep: which of its tokens are laid out, once that is known, where some may be dropped.
        places: of the tokens that have been laid out, in the frame.
    """

    frame: Frame
    number: int
    arrived_s: float
    last: bool
    cell: int | None = None
    keep: Bool[Array | np.ndarray, "U"] | None = None
    places: Int32[np.ndarray, "n"] | None = None

    @property
    def drop_ratio(self) -> float | None:
        """Share of its tokens that say nothing new, where it has been looked at."""
        return None if self.keep is None else 1 - float(np.asarray(self.keep)[: self.frame.units].mean())

    def choose_places(self, *, drops: bool, one_at_least: bool) -> Int32[np.ndarray, "n"]:
        """Places of its tokens that become slots.

        Args:
            drops: whether those that `keep` leaves out do not.
            one_at_least: whether the last is kept if no other is, as words follow from it.
        """
        if self.keep is None or not drops:
            return np.arange(self.frame.units, dtype=np.int32)
        places = np.flatnonzero(np.asarray(self.keep)[: self.frame.units]).astype(np.int32)
        return places if len(places) or not one_at_least else np.array([self.frame.units - 1], np.int32)

    @property
    def kept(self) -> tuple[str, ...] | None:
        """For each row of its tokens which have stayed (`FrameSeen.kept`); None where none may be dropped."""
        if self.keep is None or self.places is None:
            return None
        rows, columns = self.frame.sides
        stays = np.bincount(self.places, minlength=rows * columns).reshape(rows, columns)
        return tuple("".join(map(str, row)) for row in stays.tolist())


@dataclass(frozen=True)
class Asked:
    """A question that has arrived between frames, or after the video.

    Attributes:
        pieces: its tokens, with the marks that close one piece of video and open the next; of a turn of its own, images
            may be between them.
        number: of the question; 0 is the one before the video.
        arrived_s: when it was asked, by the engine's clock.
        interrupts: whether the answer under way is broken off for it.
        cuts_off: whether there was one that has been broken off.
    """

    pieces: tuple[Piece, ...]
    number: int
    arrived_s: float
    interrupts: bool
    cuts_off: bool = False

    @property
    def length(self) -> int:
        """Tokens of its texts and images."""
        return sum(piece.units if isinstance(piece, Frame) else len(piece) for piece in self.pieces)


@dataclass
class Group:
    """Tokens that are written one after another.

    Attributes:
        tokens: all of them.
        is_target: whether they are words, not sources.
        arrival: the frame whose tokens they are, if any.
        taken: how many of them passes have taken.
    """

    tokens: Tokens
    is_target: bool = False
    arrival: Arrival | None = None
    taken: int = 0

    @property
    def left(self) -> int:
        """Tokens that have not been taken."""
        return len(self.tokens.token_ids) - self.taken


@dataclass(frozen=True)
class Part:
    """What a pass takes of a group: its tokens from `first` to `stop`."""

    group: Group
    first: int
    stop: int

    @property
    def completes(self) -> bool:
        """Whether the group is written with it."""
        return self.stop == len(self.group.tokens.token_ids)


@dataclass
class Share:
    """What one stream has in a pass.

    Attributes:
        parts: what is written, in order.
        speaks: whether the token that follows the last of them is to be chosen.
        shows: whether words may see more sources from this pass on.
        revealed: the frames and questions among these.
    """

    parts: list[Part] = field(default_factory=list)
    speaks: bool = False
    shows: bool = False
    revealed: list[Arrival | Asked] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(part.stop - part.first for part in self.parts)


@dataclass
class Tally:
    """What a stream has cost, and how it kept up with its clock.

    Attributes:
        frames_encoded: frames through the vision tower.
        tokens_computed: tokens through the decoder.
        tokens_dropped: tokens of frames that were dropped before it.
        frames_seen: frames that words could see.
        frames_delayed, frames_dropped, frames_merged: frames that waited for earlier ones to be taken in, were never
            taken in, or went into another frame.
        blocks_stored, blocks_forgotten: blocks of sources that a memory has stored on the host, and those that it has
            forgotten since, as there was no more room.
        host_bytes: of the blocks that are there.
        largest_lag_s: longest time from a frame's arrival until words could see it.
    """

    frames_encoded: int = 0
    tokens_computed: int = 0
    tokens_dropped: int = 0
    frames_seen: int = 0
    frames_delayed: int = 0
    frames_dropped: int = 0
    frames_merged: int = 0
    blocks_stored: int = 0
    blocks_forgotten: int = 0
    host_bytes: int = 0
    largest_lag_s: float = 0.0
