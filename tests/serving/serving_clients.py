"""Servers inside the test's own event loop, and clients of them: good ones and others."""

import asyncio
import contextlib
import io
import json
import socket as sockets
import struct

import aiohttp
import numpy as np
from PIL import Image

from swjax.inference import Request, StreamSettings, run_streams
from swjax.inference.frames import make_frame
from swjax.serving import Access, Limits, Offer, Server

ROWS = 16
FRAME_PIXELS = 56 * 56
QUESTION = "What happens?"
TAIL = 6


def make_pictures(count: int, seed: int, size: tuple[int, int] = (64, 64)) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.asarray(Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize(size)) for _ in range(count)]


def encode_picture(picture: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


def expected_words(engine, tokenizer, record, videos, **settings) -> list[list[int]]:
    """The answers to videos, given as lists of pictures, without a server and without clients that disturb."""
    requests = []
    for pictures in videos:
        frames = [
            make_frame(
                pictures[first : first + 2],
                video_s=(first + 1) / record.fps,
                min_pixels=record.min_pixels,
                max_pixels=record.max_pixels,
            )
            for first in range(0, len(pictures) - 1, 2)
        ]
        requests.append(Request(QUESTION, frames, StreamSettings(**{"max_tail": TAIL, **settings})))
    streams = {number: stream for number, stream, _ in run_streams(engine, tokenizer, requests)}
    return [streams[number].answer for number in range(len(requests))]


@contextlib.asynccontextmanager
async def serving(source, engine, size, tokenizer, *, access=None, **limits):
    """A server; yields it, its address and a session that talks to it."""
    offer = Offer("tiny", source.record, limits=Limits(**{"max_video_s": 12, "max_tail": 300, **limits}))
    server = Server(engine, size, tokenizer, offer, access or Access("127.0.0.1"))
    port = await server.start(0)
    try:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector) as session:
            yield server, session
    finally:
        await server.stop()


async def tell(socket, kind: str, **fields) -> None:
    await socket.send_str(json.dumps({"type": kind, **fields}))


async def hear(socket, *until: str) -> list[dict]:
    """Messages up to one of a kind, or to the end."""
    heard = []
    async for message in socket:
        heard.append(json.loads(message.data))
        if heard[-1]["type"] in until:
            break
    return heard


async def begin(session, **fields):
    """Open a socket and a stream, and wait for a row."""
    socket = await session.ws_connect("/ws")
    await tell(socket, "open", **{"question": QUESTION, "max_tail": TAIL, **fields})
    heard = await hear(socket, "opened", "error")
    assert heard[-1]["type"] == "opened", heard[-1]
    return socket


async def watch(session, files: list[bytes], **fields) -> list[dict]:
    """Stream a video as a good client does; returns all that was heard after it was opened."""
    socket = await begin(session, **fields)
    for number, data in enumerate(files):
        if number == len(files) - 2:
            await tell(socket, "last")
        await socket.send_bytes(data)
    heard = await hear(socket)
    assert socket.close_code == 1000, heard
    return heard


def words(heard: list[dict]) -> list[int]:
    return [message["token_id"] for message in heard if message["type"] == "word"]


async def read_metrics(session, **request) -> dict[str, float]:
    async with session.get("/metrics", **request) as response:
        assert response.status == 200
        lines = (await response.text()).splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
"""What makes a socket of a connection by hand."""


async def connect(session, *, buffer: int | None = None) -> sockets.socket:
    """A TCP connection by hand, perhaps with a small buffer for what it does not read."""
    raw = sockets.socket()
    if buffer is not None:
        raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, buffer)
    raw.setblocking(False)
    url = session._base_url
    await asyncio.get_running_loop().sock_connect(raw, (url.host, url.port))
    return raw


def masked(data: bytes, kind: int) -> bytes:
    """A WebSocket frame of a client, the mask being zero."""
    if len(data) < 126:
        size = bytes([0x80 | len(data)])
    else:
        size = b"\xfe" + struct.pack(">H", len(data)) if len(data) < 2**16 else b"\xff" + struct.pack(">Q", len(data))
    return bytes([0x80 | kind]) + size + bytes(4) + data
