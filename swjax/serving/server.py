"""The server: a page, sockets, health and counts, until a signal or the engine ends it."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path

from aiohttp import web

from swjax.inference import BatchEngine
from swjax.serving import counts as counting
from swjax.serving.access import Access
from swjax.serving.connection import Connection
from swjax.serving.counts import Counts
from swjax.serving.decoders import Decoders, DecodersError
from swjax.serving.door import HEADERS, Door
from swjax.serving.engine import EngineSize
from swjax.serving.engine_loop import EngineLoop
from swjax.serving.intake import Shared
from swjax.serving.offer import Offer
from swjax.serving.patience import in_time
from swjax.serving.protocol import Failed
from swjax.streaming.tokens import Tokenizer

PAGE = Path(__file__).parent / "page"
CONTENT_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
DECODERS = max(2, min(8, os.cpu_count() or 2))
"""Processes that decode pictures, for all clients together."""

_log = logging.getLogger(__name__)


class ServingError(RuntimeError):
    """The server cannot start, or its engine has failed; the message says why."""


class EngineHangs(ServingError):
    """The engine's thread does not end, so the process will not end by itself."""


class Server:
    """One engine, offered to clients.

    Args:
        engine: the engine, warm.
        size: its size.
        tokenizer: its model's tokenizer.
        offer: what clients can have.
        access: who may connect.

    Attributes:
        failure: what ended the engine, if it has failed.
        over: set when the server is to end.
    """

    def __init__(self, engine: BatchEngine, size: EngineSize, tokenizer: Tokenizer, offer: Offer, access: Access):
        self._access, self._rows, self._limits = access, size.rows, offer.limits
        self._decoders = Decoders(DECODERS, self._limits.decode_s)
        self._files = {
            file.name: (file.read_text(encoding="utf-8"), CONTENT_TYPES[file.suffix])
            for file in PAGE.iterdir()
            if file.suffix in CONTENT_TYPES
        }
        self.failure: BaseException | None = None
        self.over = asyncio.Event()
        counts = Counts()
        loop = EngineLoop(
            engine,
            tokenizer,
            counts,
            limits=offer.limits,
            loop=asyncio.get_running_loop(),
            on_failure=self._engine_failed,
        )
        max_patches = size.frame_units * offer.geometry.token_patches
        self._shared = Shared(offer, loop, counts, self._decoders, max_patches)
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None

    async def start(self, port: int) -> int:
        """Listen; returns the port, which the system chooses where 0 is asked for.

        Raises:
            ServingError: if the address cannot be had, or pictures cannot be decoded.
        """
        try:
            await self._decoders.start()
        except DecodersError as error:
            await self._decoders.stop()
            raise ServingError(str(error)) from error
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/", self._page)
        app.router.add_get("/page/{name}", self._page)
        app.router.add_get("/ws", self._connect)
        app.router.add_get("/hello", self._hello)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        assert self._runner.server is not None
        door = Door(self._runner.server, self._limits, self._shared.counts)
        loop = asyncio.get_running_loop()
        try:
            self._listener = await loop.create_server(door, self._access.host, port)
        except (OSError, OverflowError) as error:
            await self._runner.cleanup()
            await self._decoders.stop()
            raise ServingError(
                f"{self._access.host}:{port} cannot be listened on ({error}); choose another --port"
            ) from error
        self._shared.engine.start()
        return self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Tell all clients, end their streams, and let the address go; waits for nobody longer than a moment.

        Raises:
            EngineHangs: if the engine's thread does not end.
        """
        assert self._runner is not None
        assert self._listener is not None
        self.over.set()
        self._listener.close()
        self._shared.engine.stop()
        self._fail_all(Failed("shutdown", "the server is being stopped; try again later"))
        # Those who read what they are told have their goodbye in a moment; meanwhile all else ends.
        _, _, has_ended = await asyncio.gather(
            self._see_off(), self._stop_decoders(), asyncio.to_thread(self._shared.engine.join, self._limits.stop_s)
        )
        await self._runner.cleanup()
        if not has_ended:
            raise EngineHangs(f"the engine has been busy for {self._shared.engine.stalled_s:.0f} s and does not end")

    async def _see_off(self) -> None:
        for _ in range(20):
            if not self._shared.connections:
                return
            await asyncio.sleep(self._limits.stop_s / 20)
        for connection in tuple(self._shared.connections):
            connection.abort()

    async def _stop_decoders(self) -> None:
        with contextlib.suppress(TimeoutError):
            await in_time(self._decoders.stop(), self._limits.stop_s)

    def _fail_all(self, failure: Failed) -> None:
        for connection in tuple(self._shared.connections):
            connection.fail(failure)

    def _engine_failed(self, error: BaseException) -> None:
        self.failure = error
        _log.error("the engine has failed", exc_info=error)
        self._fail_all(Failed("engine_failure", "the engine has failed, so the server ends; its log says why"))
        self.over.set()

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Refuse requests that were led here under another name; add headers that keep the page to itself."""
        try:
            # Not `request.host`, which has a name of this machine where the client gives none.
            if (why := self._access.check_host(request.headers.get("Host"))) is not None:
                raise self._refusal(web.HTTPForbidden, "host", why)
            response = await handler(request)
        except web.HTTPException as answer:
            answer.headers.update(HEADERS)
            raise
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    async def _page(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info.get("name", "index.html")
        if name not in self._files:
            raise web.HTTPNotFound(text="there is no such file here\n")
        text, content_type = self._files[name]
        return web.Response(text=text, content_type=content_type)

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        if (why := self._access.check_origin(request.headers.get("Origin"), request.headers.get("Host"))) is not None:
            raise self._refusal(web.HTTPForbidden, "origin", why)
        self._check_token(request)
        if self.over.is_set():
            raise self._refusal(web.HTTPServiceUnavailable, "shutdown", "the server is being stopped")
        if len(self._shared.connections) >= self._limits.max_clients:
            raise self._refusal(web.HTTPServiceUnavailable, "clients", "there are too many clients; try again later")
        owners = self._access.owners(request.remote or "", request.headers, request.query)
        if any(self._shared.owners[owner] >= self._limits.max_clients_each for owner in owners):
            why = f"there are {self._limits.max_clients_each} sockets of this address or token; close one first"
            raise self._refusal(web.HTTPTooManyRequests, "clients_each", why)
        connection = Connection(self._shared, owners)
        if not connection.can_begin(request):
            raise self._refusal(web.HTTPBadRequest, "no_websocket", "this is the address of a WebSocket (RFC 6455)")
        return await connection.run(request)

    async def _hello(self, request: web.Request) -> web.StreamResponse:
        """What the first message of a socket says, for a page that wants to know it before."""
        self._check_token(request)
        return web.json_response(asdict(self._shared.offer.hello()))

    async def _health(self, request: web.Request) -> web.StreamResponse:
        status = "failed" if self.failure is not None else "stopping" if self.over.is_set() else "ok"
        if status == "ok" and self._shared.engine.stalled_s > self._limits.stall_s:
            status = "stalled"
        return web.json_response({"status": status}, status=200 if status == "ok" else 503)

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        self._check_token(request)
        engine = self._shared.engine
        text = self._shared.counts.render(
            {
                "clients": (len(self._shared.connections), "Open sockets."),
                "clients_waiting": (engine.waiting, "Clients that wait for a row."),
                "rows": (self._rows, "Rows of the engine."),
                "rows_free": (engine.free_rows, "Rows without a stream."),
                "engine_passes": (engine.passes, "Passes over the weights."),
            }
        )
        return web.Response(body=text.encode(), headers={"Content-Type": counting.CONTENT_TYPE})

    def _check_token(self, request: web.Request) -> None:
        if (why := self._access.check_token(request.headers, request.query)) is not None:
            raise self._refusal(web.HTTPUnauthorized, "token", why)

    def _refusal(self, kind: type[web.HTTPException], by: str, why: str) -> web.HTTPException:
        self._shared.counts.add("refused", by=by)
        # What a client has sent may be in it, and need not be text that can be encoded.
        return kind(text=f"{why.encode(errors='backslashreplace').decode()}\n")


async def serve(
    engine: BatchEngine,
    size: EngineSize,
    tokenizer: Tokenizer,
    offer: Offer,
    access: Access,
    *,
    port: int,
    on_listening: Callable[[int], None],
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        engine: the engine, warm.
        size: its size.
        tokenizer: its model's tokenizer.
        offer: what clients can have.
        access: who may connect.
        port: where to listen; 0 for any that is free.
        on_listening: called with the port when clients may come.

    Raises:
        ServingError: if the address cannot be had, or the engine fails.
    """
    server = Server(engine, size, tokenizer, offer, access)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.over.set)
    on_listening(await server.start(port))
    await server.over.wait()
    await server.stop()
    if server.failure is not None:
        raise ServingError(f"the engine has failed: {server.failure!r}") from server.failure
