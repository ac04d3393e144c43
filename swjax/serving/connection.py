"""One client: its messages are read and checked one after another, while what it is told is sent."""

import asyncio
import socket
import time
from collections.abc import Coroutine
from typing import Any

from aiohttp import WSMsgType, web

from swjax.serving.engine_loop import Ticket
from swjax.serving.intake import Intake, Shared, too_early
from swjax.serving.limits import CONTROL_MESSAGE_BYTES
from swjax.serving.outbox import Outbox
from swjax.serving.parsing import parse
from swjax.serving.protocol import (
    CLOSE_CODES,
    Close,
    Failed,
    Finish,
    Last,
    Open,
    ProtocolError,
    ServerMessage,
    encode,
)


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
        self._intake: Intake | None = None
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
                case Open():
                    self._open(message)
                case bytes():
                    await self._need_intake("a picture").take(message)
                case Last():
                    self._need_intake("last").last()
                case Finish():
                    self._need_intake("finish").finish()
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
            except ConnectionError as error:  # it has gone before its ping was answered
                raise Vanished from error
        if message.type is WSMsgType.BINARY:
            return message.data
        if message.type is WSMsgType.TEXT:
            return parse(message.data, self._limits)
        if message.type is WSMsgType.ERROR and getattr(message.data, "code", None) == 1009:
            self._shared.counts.add("refused", by="too_big_message")
        raise Vanished

    def _deadline(self) -> float | None:
        """When the next message must have come, by the event loop's clock; None if none needs to come."""
        left_s = self._limits.idle_s
        if self._intake is not None:
            if self._intake.finished:
                return None
            left_s = min(left_s, self._intake.left_s)
        return asyncio.get_running_loop().time() + left_s

    def _may_be_silent(self) -> bool:
        """Whether the client has waited for a row until a moment ago."""
        if self._ticket is None:
            return False
        opened_s = self._ticket.opened_s
        return opened_s is None or time.monotonic() - opened_s < min(self._limits.idle_s, self._limits.max_wall_s)

    def _late(self) -> ProtocolError:
        if self._intake is not None and self._intake.is_late:
            return self._intake.too_late()
        return ProtocolError(
            "idle", f"nothing came for {self._limits.idle_s:g} s; send pictures as they are taken, and then finish"
        )

    def _open(self, message: Open) -> None:
        if self._ticket is not None:
            raise ProtocolError("bad_message", '"open" came twice; open another socket for another stream')
        self._ticket = Ticket(self._offer.choose(message), self.outbox)
        self._intake = Intake(self._shared, self._ticket)
        self._shared.engine.open(self._ticket)

    def _need_intake(self, what: str) -> Intake:
        if self._intake is None:
            raise too_early(what)
        return self._intake


def _close_code(message: ServerMessage) -> int:
    return CLOSE_CODES[message.code] if isinstance(message, Failed) else 1000


async def _cancel(task: "asyncio.Task[Any]") -> None:
    """End a task and wait until it has ended."""
    task.cancel()
    await asyncio.wait((task,))
