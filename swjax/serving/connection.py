"""One client: its messages are read and checked one after another, while what it is told is sent."""

import asyncio
import functools
import socket
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import WSMsgType, web

from swjax.data.patches import TEMPORAL_PATCH_SIZE
from swjax.serving.counts import Counts
from swjax.serving.engine_loop import EngineLoop, Ticket
from swjax.serving.limits import CONTROL_MESSAGE_BYTES
from swjax.serving.offer import Offer
from swjax.serving.outbox import Outbox
from swjax.serving.pictures import check_picture, decode_frame
from swjax.serving.protocol import (
    CLOSE_CODES,
    Close,
    Failed,
    Finish,
    Last,
    Limited,
    Open,
    ProtocolError,
    ServerMessage,
    encode,
    parse,
)

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


class Vanished(Exception):
    """The client has gone, or its socket is broken."""


class Connection:
    """One socket, from its first message to its last.

    Attributes:
        outbox: what waits to be sent.
    """

    def __init__(self, shared: Shared):
        self._shared, self._offer, self._limits = shared, shared.offer, shared.offer.limits
        self._ticket: Ticket | None = None
        self._size: tuple[int, int] | None = None
        self._pictures: list[bytes] = []
        self._count = 0
        self._is_last = self._finished = self._limited = False
        self.outbox = Outbox(asyncio.get_running_loop(), self._limits.outbox_messages)
        # No compression: a small message could be made to become a very large one.
        self._socket = web.WebSocketResponse(
            max_msg_size=max(2 * self._limits.max_message_bytes, 4 * CONTROL_MESSAGE_BYTES),
            compress=False,
            timeout=self._limits.send_s,
            writer_limit=min(16_384, self._limits.send_buffer_bytes),
        )

    async def run(self, request: web.Request) -> web.WebSocketResponse:
        """Serve the client until its stream has ended or it has gone."""
        self._shared.connections.add(self)
        try:
            await self._prepare(request)
            await self._converse()
        finally:
            self._shared.connections.discard(self)
            if self._ticket is not None:
                self._shared.engine.close(self._ticket, "vanished")
            if request.transport is not None and self._socket.close_code in (None, 1006):
                request.transport.abort()  # or what it does not read would be kept for it
        return self._socket

    async def _prepare(self, request: web.Request) -> None:
        await self._socket.prepare(request)
        transport = request.transport
        if transport is not None and (tcp := transport.get_extra_info("socket")) is not None:
            # What is buffered of unread words is not seen in the outbox, so it may not be much.
            transport.set_write_buffer_limits(high=self._limits.send_buffer_bytes)
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._limits.send_buffer_bytes)

    async def _converse(self) -> None:
        """Read and send until one of both is over; then say goodbye, if the client is still there."""
        self.outbox.put(self._offer.hello())
        reader, sender = asyncio.create_task(self._guard(self._read())), asyncio.create_task(self._send())
        try:
            await asyncio.wait((reader, sender), return_when=asyncio.FIRST_COMPLETED)
            if reader.done() and reader.result():
                await asyncio.wait((sender,))
            if sender.done() and (code := sender.result()) is not None:
                await _cancel(reader)
                async with asyncio.timeout(2 * self._limits.send_s):
                    await self._socket.close(code=code)
        except TimeoutError:
            pass  # it does not read its goodbye either
        finally:
            await _cancel(reader)
            await _cancel(sender)

    def fail(self, failure: Failed) -> None:
        """End the stream, and tell the client why."""
        if self._ticket is not None:
            self._shared.engine.close(self._ticket, failure.code)
        if self.outbox.end(failure) and self._ticket is None:
            self._shared.counts.add("refused", by=failure.code)

    async def _send(self) -> int | None:
        """Send what comes into the outbox; returns the close code when the last has been sent, None if it cannot be."""
        try:
            while True:
                messages, is_end = await self.outbox.take()
                for message in messages:
                    async with asyncio.timeout(self._limits.send_s):
                        await self._socket.send_str(encode(message))
                if is_end:
                    return _close_code(messages[-1])
        except TimeoutError:
            if self._ticket is not None:
                self._shared.engine.close(self._ticket, "slow_reader")
            return None
        except ConnectionError:
            return None

    async def _guard(self, reading: Coroutine[Any, Any, None]) -> bool:
        """Read until nothing more is to be read; returns whether the client is still there."""
        try:
            await reading
        except ProtocolError as error:
            self.fail(Failed(error.code, str(error)))
        except Vanished:
            return False
        return True

    async def _read(self) -> None:
        while not isinstance(message := await self._receive(), Close):
            match message:
                case bytes():
                    await self._take_picture(message)
                case Open():
                    self._open(message)
                case Last():
                    self._need_open("last")
                    self._is_last = True
                case Finish():
                    if not self._finished:
                        self._finish(self._need_open("finish"))
        if self._ticket is None:
            raise Vanished
        self._shared.engine.close(self._ticket, "closed")

    async def _receive(self) -> "bytes | Open | Last | Finish | Close":
        """The next message; what comes in its place raises."""
        while True:
            try:
                async with asyncio.timeout_at(self._deadline()):
                    message = await self._socket.receive()
                break
            except TimeoutError as error:
                # One that has waited for a row meanwhile has its time from now on.
                if self._may_be_silent():
                    continue
                raise self._late() from error
        if message.type is WSMsgType.BINARY:
            return message.data
        if message.type is WSMsgType.TEXT:
            return parse(message.data, self._limits)
        if message.type is WSMsgType.ERROR and getattr(message.data, "code", None) == 1009:
            self._shared.counts.add("refused", by="too_big_message")
        raise Vanished

    def _deadline(self) -> float | None:
        """When the next message must have come, by the event loop's clock; None if none needs to come."""
        if self._finished:
            return None
        return asyncio.get_running_loop().time() + min(self._limits.idle_s, self._wall_left_s())

    def _may_be_silent(self) -> bool:
        """Whether the client has waited for a row until a moment ago."""
        if self._ticket is None:
            return False
        opened_s = self._ticket.opened_s
        return opened_s is None or time.monotonic() - opened_s < min(self._limits.idle_s, self._limits.max_wall_s)

    def _wall_left_s(self) -> float:
        if self._ticket is None or self._ticket.opened_s is None:
            return self._limits.max_wall_s
        return max(0.0, self._ticket.opened_s + self._limits.max_wall_s - time.monotonic())

    def _late(self) -> ProtocolError:
        if self._wall_left_s() == 0.0:
            return ProtocolError(
                "time_limit", f"the video had not ended {self._limits.max_wall_s:g} s after the stream was opened"
            )
        return ProtocolError(
            "idle", f"nothing came for {self._limits.idle_s:g} s; send pictures as they are taken, and then finish"
        )

    def _open(self, message: Open) -> None:
        if self._ticket is not None:
            raise ProtocolError("bad_message", '"open" came twice; open another socket for another stream')
        ticket = Ticket(self._offer.choose(message), self.outbox)
        self._ticket = ticket
        self._shared.engine.open(ticket)

    def _need_open(self, what: str) -> Ticket:
        """The ticket, when it has a row and the video goes on."""
        if self._ticket is None or self._ticket.opened_s is None:
            raise ProtocolError("bad_message", f"{what} came too early; send open and wait for the message opened")
        if self._finished and not self._limited:
            raise ProtocolError("bad_message", f"{what} came after the video's end; open another socket for another")
        return self._ticket

    async def _take_picture(self, data: bytes) -> None:
        ticket, number = self._need_open("a picture"), self._count
        if self._limited:
            return
        if self._wall_left_s() == 0.0:
            raise self._late()
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
            await self._hand_over(ticket)
        if self._count == self._offer.max_pictures and not self._finished:
            self._limited = True
            self._finish(ticket)
            self.outbox.put(
                Limited(f"a video may have {self._limits.max_video_s:g} s here; what comes after it is not looked at")
            )

    async def _hand_over(self, ticket: Ticket) -> None:
        """Make a frame of the pictures that have come, when there is room for it."""
        await ticket.room.wait()
        record, files = self._offer.record, tuple(self._pictures)
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
        self._shared.engine.see(ticket, frame, last=self._is_last)
        self._finished = self._is_last

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

    def _finish(self, ticket: Ticket) -> None:
        if self._count < TEMPORAL_PATCH_SIZE:
            raise ProtocolError(
                "bad_message",
                f"the video has ended after {self._count} pictures, and {TEMPORAL_PATCH_SIZE} make a frame; send more",
            )
        if not self._finished:
            self._finished = True
            self._shared.engine.finish(ticket)


def _close_code(message: ServerMessage) -> int:
    return CLOSE_CODES[message.code] if isinstance(message, Failed) else 1000


async def _cancel(task: "asyncio.Task[Any]") -> None:
    """End a task and wait until it has ended."""
    task.cancel()
    await asyncio.wait((task,))
