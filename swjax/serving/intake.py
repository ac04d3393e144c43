"""One client's video on its way to the engine: its pictures are checked and made into frames, two by two."""

import asyncio
import functools
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from swjax.data.patches import TEMPORAL_PATCH_SIZE
from swjax.serving.counts import Counts
from swjax.serving.engine_loop import EngineLoop, Ticket
from swjax.serving.offer import Offer
from swjax.serving.pictures import check_picture, decode_frame
from swjax.serving.protocol import Limited, ProtocolError

if TYPE_CHECKING:
    from swjax.serving.connection import Connection

Result = TypeVar("Result")


@dataclass
class Shared:
    """What all connections of a server share.

    Attributes:
        offer: what clients can have.
        engine: the engine's thread.
        counts: counts what happens.
        decoders: threads in which pictures are decoded.
        max_patches: patches of the largest frame that the engine takes.
        shapes: numbers of patches of a frame that the vision tower is, or will be, compiled for.
        connections: those that are open.
    """

    offer: Offer
    engine: EngineLoop
    counts: Counts
    decoders: Executor
    max_patches: int
    shapes: set[int]
    connections: "set[Connection]" = field(default_factory=set)


class Intake:
    """The pictures of one stream.

    Attributes:
        finished: whether no frame follows.
    """

    def __init__(self, shared: Shared, ticket: Ticket):
        self._shared, self._limits, self._ticket = shared, shared.offer.limits, ticket
        self._size: tuple[int, int] | None = None
        self._pictures: list[bytes] = []
        self._count = 0
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
        size = await self._in_thread(check_picture, data, number, self._limits)
        if self._size is not None and size != self._size:
            text = f"picture {number} has {size[0]} x {size[1]} pixels and those before it {self._size[0]} x "
            raise ProtocolError("bad_picture", f"{text}{self._size[1]}; send all of a video at one size")
        self._size = size
        self._pictures.append(data)
        self._count += 1
        if len(self._pictures) == TEMPORAL_PATCH_SIZE:
            await self._hand_over()
        if self._count == self._shared.offer.max_pictures and not self.finished:
            self._limited = True
            self.finish()
            text = f"a video may have {self._limits.max_video_s:g} s here; what comes after it is not looked at"
            self._ticket.outbox.put(Limited(text))

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
        if self._count < TEMPORAL_PATCH_SIZE:
            raise ProtocolError(
                "bad_message",
                f"the video has ended after {self._count} pictures, and {TEMPORAL_PATCH_SIZE} make a frame; send more",
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
        record, files = self._shared.offer.record, tuple(self._pictures)
        self._pictures.clear()
        frame = await self._in_thread(
            decode_frame,
            files,
            self._count - len(files),
            fps=record.fps,
            min_pixels=record.min_pixels,
            max_pixels=record.max_pixels,
        )
        self._check_shape(len(frame.patches))
        self._shared.engine.see(self._ticket, frame, last=self._is_last)
        self.finished = self._is_last

    def _check_shape(self, patches: int) -> None:
        """Refuse frames for which the model would have to be compiled too often, or that are too large for it."""
        shapes, largest = self._shared.shapes, self._shared.max_patches
        if patches > largest:
            raise ProtocolError(
                "bad_picture",
                f"pictures of this shape become frames of {patches} patches, and {largest} are the most; send them "
                "less oblong",
            )
        if patches not in shapes and len(shapes) >= self._limits.max_frame_shapes:
            raise ProtocolError(
                "bad_picture",
                f"pictures of this shape become frames of {patches} patches, for which the model is not compiled; send "
                f"another shape: it is compiled for {', '.join(map(str, sorted(shapes)))} patches",
            )
        shapes.add(patches)

    async def _in_thread(self, function: Callable[..., Result], *args: Any, **named: Any) -> Result:
        """Call a function that takes its time in one of the threads for pictures."""
        call = functools.partial(function, *args, **named)
        return await asyncio.get_running_loop().run_in_executor(self._shared.decoders, call)


def too_early(what: str) -> ProtocolError:
    """The error of a message that came before the stream had a row."""
    return ProtocolError("bad_message", f"{what} came too early; send open and wait for the message opened")
