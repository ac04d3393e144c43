"""One client's video on its way to the engine: its pictures are checked and made into frames."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from swjax.data.pictures import PictureError
from swjax.inference import Frame
from swjax.serving.counts import Counts
from swjax.serving.decoders import Decoders, DecodeShare
from swjax.serving.engine_loop import EngineLoop, Ticket
from swjax.serving.offer import Offer
from swjax.serving.pictures import check_picture
from swjax.serving.protocol import Ask, Limited, ProtocolError

if TYPE_CHECKING:
    from swjax.serving.connection import Connection


@dataclass
class Shared:
    """What all connections of a server share.

    Attributes:
        offer: what clients can have.
        engine: the engine's thread.
        counts: counts what happens.
        decoders: processes in which pictures are decoded.
        max_patches: patches of the largest frame that the engine takes.
        connections: those that are open.
        owners: how many of them each address and token has.
    """

    offer: Offer
    engine: EngineLoop
    counts: Counts
    decoders: Decoders
    max_patches: int
    connections: "set[Connection]" = field(default_factory=set)
    owners: Counter[str] = field(default_factory=Counter)


class Intake:
    """The pictures of one stream.

    Attributes:
        finished: whether no frame follows.
    """

    def __init__(self, shared: Shared, ticket: Ticket):
        self._shared, self._limits, self._ticket = shared, shared.offer.limits, ticket
        self._geometry = shared.offer.geometry
        self._size: tuple[int, int] | None = None
        self._share = DecodeShare()
        self._pictures: list[bytes] = []
        self._count = self._asked = 0
        self._is_last = self._limited = False
        self.finished = False

    @property
    def is_late(self) -> bool:
        """Whether the video should have ended by now."""
        return self.left_s == 0.0

    @property
    def left_s(self) -> float:
        """Seconds in which the video must end."""
        if self._ticket.opened_s is None:
            return self._limits.max_wall_s
        return max(0.0, self._ticket.opened_s + self._limits.max_wall_s - time.monotonic())

    async def take(self, data: bytes) -> None:
        """Take a picture; returns when there is room for the next one.

        Raises:
            ProtocolError: if it cannot be used.
        """
        self._check_open("a picture")
        if self._limited:
            return
        if self.is_late:
            raise self.too_late()
        number = self._count
        self._shared.counts.add("pictures")
        self._shared.counts.add("picture_bytes", len(data))
        size = check_picture(data, number, self._limits)
        if self._size is not None and size != self._size:
            text = f"picture {number} has {size[0]} x {size[1]} pixels and those before it {self._size[0]} x "
            raise ProtocolError("bad_picture", f"{text}{self._size[1]}; send all of a video at one size")
        self._size = size
        self._pictures.append(data)
        self._count += 1
        if len(self._pictures) == self._geometry.temporal_patch_size:
            await self._hand_over()
        if self._count == self._shared.offer.max_pictures and not self.finished:
            self._limited = True
            self.finish()
            text = f"a video may have {self._limits.max_video_s:g} s here; what comes after it is not looked at"
            self._ticket.outbox.put(Limited(text))

    def ask(self, message: Ask) -> None:
        """Hand a question over, behind the frames that have come.

        Raises:
            ProtocolError: if there is no frame yet, the video has ended, or there were too many questions.
        """
        self._check_open("ask")
        if self._limited:
            return
        if self._count < self._geometry.temporal_patch_size:
            raise ProtocolError("bad_message", "ask came before the first frame; ask it with open")
        if self._asked == self._limits.max_questions:
            raise ProtocolError("bad_message", f"a stream may be asked {self._asked} more questions here")
        self._asked += 1
        self._shared.engine.ask(self._ticket, message)

    def last(self) -> None:
        """Note that the next frame to be whole is the last.

        Raises:
            ProtocolError: if the stream has no row yet, or the video has ended.
        """
        self._check_open("last")
        self._is_last = True

    def finish(self) -> None:
        """Note that no frame follows; more than once does no harm.

        Raises:
            ProtocolError: if there was no frame.
        """
        if self.finished:
            return
        self._check_open("finish")
        needed = self._geometry.temporal_patch_size
        if self._count < needed:
            raise ProtocolError(
                "bad_message",
                f"the video has ended after {self._count} pictures, and {needed} make a frame; send more",
            )
        self.finished = True
        self._shared.engine.finish(self._ticket)

    def too_late(self) -> ProtocolError:
        """The error of a video that goes on for too long."""
        return ProtocolError(
            "time_limit", f"the video had not ended {self._limits.max_wall_s:g} s after the stream was opened"
        )

    def _check_open(self, what: str) -> None:
        if self._ticket.opened_s is None:
            raise too_early(what)
        if self.finished and not self._limited:
            raise ProtocolError("bad_message", f"{what} came after the video's end; open another socket for another")

    async def _hand_over(self) -> None:
        """Make a frame of the pictures that have come, when there is room for it."""
        await self._ticket.room.wait()
        record, files, size = self._shared.offer.record, tuple(self._pictures), self._size
        assert size is not None
        self._pictures.clear()
        try:
            patches, grid = await self._shared.decoders.patches(
                self._share,
                files,
                [size] * len(files),
                self._count - len(files),
                min_pixels=record.min_pixels,
                max_pixels=record.max_pixels,
                geometry=self._geometry,
            )
        except PictureError as error:
            raise ProtocolError("bad_picture", str(error)) from error
        if grid[0] * grid[1] > self._shared.max_patches:
            raise ProtocolError(
                "bad_picture",
                f"pictures of this shape become frames of {grid[0] * grid[1]} patches, and {self._shared.max_patches} "
                "are the most; send them less oblong",
            )
        array = np.frombuffer(patches, np.uint8).reshape(-1, self._geometry.patch_dim)
        frame = Frame(array, grid, (self._count - 1) / record.fps, self._geometry)
        self._shared.engine.see(self._ticket, frame, last=self._is_last)
        self.finished = self._is_last


def too_early(what: str) -> ProtocolError:
    """The error of a message that came before the stream had a row."""
    return ProtocolError("bad_message", f"{what} came too early; send open and wait for the message opened")
