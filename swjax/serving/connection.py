"""One client: its messages are read and checked one after another, while what it is told is sent."""

import asyncio
import logging
import socket
import time
from collections.abc import Coroutine
from typing import Any

from aiohttp import WSMsgType, web

from swjax.serving.engine_loop import STREAM_FAILURE, Ticket
from swjax.serving.intake import Intake, Shared, too_early
from swjax.serving.limits import CONTROL_MESSAGE_BYTES
from swjax.serving.outbox import Outbox
from swjax.serving.parsing import parse
from swjax.serving.patience import LATE_S, in_time
from swjax.serving.protocol import (
    CLOSE_CODES,
    Ask,
    Close,
    Failed,
    Finish,
    Last,
    Open,
    ProtocolError,
    ServerMessage,
    encode,
)

_log = logging.getLogger(__name__)

# The kernel finds out about peers that are gone for good, which neither send nor answer.
_TCP_OPTIONS = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class Vanished(Exception):
    """The client has gone, or its socket is broken."""


class Connection:
    """One socket, from its first message to its last.

    Args:
        shared: what all connections share.
        owners: the address and the token that it counts for.

    Attributes:
        outbox: what waits to be sent.
    """

    def __init__(self, shared: Shared, owners: tuple[str, ...]):
        self._owners = owners
        self._transport: asyncio.Transport | None = None
        self._chatter, self._chatted_s = float(shared.offer.limits.chatter_burst), time.monotonic()
        self._alive_s = asyncio.get_running_loop().time()
        self._shared, self._offer, self._limits = shared, shared.offer, shared.offer.limits
        self._ticket: Ticket | None = None
        self._intake: Intake | None = None
        self.outbox = Outbox(asyncio.get_running_loop(), self._limits.outbox_messages)
        # No compression: a small message could be made to become a very large one.
        self._socket = web.WebSocketResponse(
            max_msg_size=max(2 * self._limits.max_message_bytes, 4 * CONTROL_MESSAGE_BYTES),
            compress=False,
            autoping=False,  # or pings would be answered without end before anything else is looked at
            timeout=self._limits.send_s,
            writer_limit=min(16_384, self._limits.send_buffer_bytes),
        )

    async def run(self, request: web.Request) -> web.WebSocketResponse:
        """Serve the client until its stream has ended or it has gone."""
        self._shared.connections.add(self)
        self._shared.owners.update(self._owners)
        self._transport = request.transport
        try:
            await self._socket.prepare(request)
            self._set_buffers()
            await self._converse()
        finally:
            self._shared.connections.discard(self)
            self._shared.owners.subtract(self._owners)
            for owner in self._owners:
                if not self._shared.owners[owner]:
                    del self._shared.owners[owner]
            if self._ticket is not None:
                self._shared.engine.close(self._ticket, "vanished")
            if self._socket.close_code in (None, 1006):
                self.abort()  # or what it does not read would be kept for it
        return self._socket

    def can_begin(self, request: web.Request) -> bool:
        """Whether a request asks for a socket, in the way of RFC 6455."""
        return bool(self._socket.can_prepare(request))

    def abort(self) -> None:
        """Cut the client off."""
        if self._transport is not None:
            self._transport.abort()

    def _set_buffers(self) -> None:
        if self._transport is None or (tcp := self._transport.get_extra_info("socket")) is None:
            return
        # What is buffered of unread words is not seen in the outbox, so it may not be much.
        self._transport.set_write_buffer_limits(high=self._limits.send_buffer_bytes)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._limits.send_buffer_bytes)
        for name, value in _TCP_OPTIONS.items():
            if hasattr(socket, name):
                tcp.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

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
                await in_time(self._socket.close(code=code), self._limits.send_s)
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
                    await in_time(self._socket.send_str(encode(message)), self._limits.send_s)
                self._alive_s = asyncio.get_running_loop().time()
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
        except Exception as error:
            _log.error("a stream has failed", exc_info=error)
            self.fail(STREAM_FAILURE)
        return True

    async def _read(self) -> None:
        while not isinstance(message := await self._receive(), Close):
            match message:
                case Open():
                    self._open(message)
                case bytes():
                    await self._need_intake("a picture").take(message)
                    self._alive_s = asyncio.get_running_loop().time()
                case Ask():
                    self._need_intake("ask").ask(message)
                case Last():
                    self._need_intake("last").last()
                case Finish():
                    self._need_intake("finish").finish()
        if self._ticket is None:
            raise Vanished
        self._shared.engine.close(self._ticket, "closed")

    async def _receive(self) -> "bytes | Open | Ask | Last | Finish | Close":
        """The next message; what comes in its place raises. Others have their turn before it."""
        while True:
            left_s, began_s = self._left_s(), asyncio.get_running_loop().time()
            try:
                message = await in_time(self._socket.receive(), left_s)
            except TimeoutError as error:
                # A row or words may have come meanwhile, from which on its time counts.
                if (more_s := self._left_s()) is None or more_s > 0:
                    continue
                raise self._late() from error
            except ConnectionError as error:
                raise Vanished from error
            finally:
                if left_s is not None and (late_s := asyncio.get_running_loop().time() - began_s - left_s) > LATE_S:
                    self._alive_s += late_s  # a pause of the process is nobody's silence
            if message.type is WSMsgType.BINARY:
                return message.data
            if message.type in (WSMsgType.TEXT, WSMsgType.PING, WSMsgType.PONG):
                self._note_chatter()
            if message.type is WSMsgType.TEXT:
                return parse(message.data, self._limits)
            if message.type is WSMsgType.PING:
                await self._answer_ping(message.data)
            elif message.type is not WSMsgType.PONG:
                if message.type is WSMsgType.ERROR and getattr(message.data, "code", None) == 1009:
                    self._shared.counts.add("refused", by="too_big_message")
                raise Vanished

    async def _answer_ping(self, data: bytes) -> None:
        try:
            await in_time(self._socket.pong(data), self._limits.send_s)
        except (TimeoutError, ConnectionError) as error:
            raise Vanished from error

    def _note_chatter(self) -> None:
        """Refuse messages that are no pictures, when they come as a flood."""
        limits, now = self._limits, time.monotonic()
        earned = (now - self._chatted_s) * limits.chatter_per_s
        self._chatter, self._chatted_s = min(limits.chatter_burst, self._chatter + earned) - 1, now
        if self._chatter < 0:
            raise ProtocolError("bad_message", "there are too many messages beside pictures; send each once")

    def _left_s(self) -> float | None:
        """Seconds in which a picture must have come, or a word must have been said; None if nothing needs to come."""
        if self._ticket is not None and self._ticket.opened_s is None:
            return self._limits.idle_s  # it waits in line; looked at again then
        now = asyncio.get_running_loop().time()
        left_s = self._alive_s + self._limits.idle_s - now
        if self._ticket is not None and self._ticket.opened_s is not None:
            left_s = max(left_s, self._ticket.opened_s + self._limits.idle_s - time.monotonic())
        if self._intake is not None:
            if self._intake.finished:
                return None
            left_s = min(left_s, self._intake.left_s)
        return max(0.0, left_s)

    def _late(self) -> ProtocolError:
        if self._intake is not None and self._intake.is_late:
            return self._intake.too_late()
        return ProtocolError(
            "idle", f"nothing came for {self._limits.idle_s:g} s; send pictures as they are taken, and then finish"
        )

    def _open(self, message: Open) -> None:
        if self._ticket is not None:
            raise ProtocolError("bad_message", '"open" came twice; open another socket for another stream')
        self._ticket = Ticket(self._offer.choose(message), self.outbox, self._owners)
        self._intake = Intake(self._shared, self._ticket)
        self._shared.engine.open(self._ticket)

    def _need_intake(self, what: str) -> Intake:
        if self._intake is None:
            raise too_early(what)
        return self._intake


def _close_code(message: ServerMessage) -> int:
    return CLOSE_CODES[message.code] if isinstance(message, Failed) else 1000


async def _cancel(task: "asyncio.Task[object]") -> None:
    """End a task and wait until it has ended."""
    task.cancel()
    await asyncio.wait((task,))
