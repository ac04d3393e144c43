"""Connections before they are sockets: few, short, and the first to go when there are too many."""

import asyncio
from collections import Counter
from typing import Any

from aiohttp import web

from swjax.plain import Json
from swjax.serving.counts import Counts
from swjax.serving.limits import Limits
from swjax.serving.masks import FrameGuard

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
"""What every answer says, so that a page keeps to itself."""


class Visitor(web.RequestHandler):
    """One TCP connection. It becomes a socket within `request_s`, or ends."""

    __slots__ = ("_door", "_expiry", "address", "is_socket")

    def __init__(self, door: "Door", server: web.Server, loop: asyncio.AbstractEventLoop, limits: Limits):
        options: Json = {
            "access_log": None,
            "keepalive_timeout": limits.keep_alive_s,
            "lingering_time": min(1.0, limits.stop_s),
        }
        super().__init__(server, loop=loop, **options)
        self._door, self.address, self.is_socket = door, "", False
        self._expiry = loop.call_later(limits.request_s, self.leave)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Come in, if there is room."""
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        super().connection_made(transport)
        self._door.enter(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Go."""
        self._expiry.cancel()
        self._door.exit(self)
        super().connection_lost(exc)

    def set_parser(self, parser: Any, *args: Any, **named: Any) -> None:
        """Become a socket."""
        self.is_socket = True
        self._expiry.cancel()
        self._door.exit(self)
        guard: Any = FrameGuard(parser, self.leave)
        super().set_parser(guard, *args, **named)

    def leave(self) -> None:
        """Go at once."""
        if self.transport is not None:
            self.transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no request, or what a handler could not answer.

        Args:
            request: as far as it was understood.
            status: of the answer in HTTP; below 500 the request was at fault.
            exc: what was raised, for aiohttp's log; below 500 it is not looked at.
            message: aiohttp's text for the answer; below 500 another is sent.

        Raises:
            ConnectionError: if an answer has been sent already.
        """
        if status < 500:
            self._door.counts.add("refused", by="bad_request")
            if request.writer.output_size > 0:
                raise ConnectionError("an answer has been sent already")
            text = "this is no HTTP request that is understood here\n"
            response: web.StreamResponse = web.Response(status=status, text=text)
            response.force_close()
        else:
            response = super().handle_error(request, status, exc, message)
        response.headers.update(HEADERS)
        return response


class Door:
    """Makes a visitor of each connection, and keeps their number within the limit.

    Args:
        server: what answers them.
        limits: what the server takes.
        counts: counts who is turned away.

    Attributes:
        visitors: those that are no sockets, in the order in which they came.
    """

    def __init__(self, server: web.Server, limits: Limits, counts: Counts):
        self._server, self._limits, self.counts = server, limits, counts
        self.visitors: dict[Visitor, None] = {}

    def __call__(self) -> Visitor:
        """A handler for a new connection, as the event loop asks for it."""
        return Visitor(self, self._server, asyncio.get_running_loop(), self._limits)

    def enter(self, visitor: Visitor) -> None:
        """Let one in; when there are too many, the oldest of the address that has most leaves."""
        self.visitors[visitor] = None
        if len(self.visitors) <= self._limits.max_connections:
            return
        numbers = Counter(one.address for one in self.visitors)
        most = max(numbers.values())
        oldest = next(one for one in self.visitors if numbers[one.address] == most)
        self.counts.add("refused", by="connections")
        self.exit(oldest)
        oldest.leave()

    def exit(self, visitor: Visitor) -> None:
        """Forget one."""
        self.visitors.pop(visitor, None)
