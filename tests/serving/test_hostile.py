"""Strangers: what one client does is that client's alone."""

import asyncio
import contextlib
import json
import logging
import threading
import time

import aiohttp
import hostile_files
import pytest
from serving_clients import (
    QUESTION,
    ROWS,
    TAIL,
    UPGRADE,
    begin,
    connect,
    encode_picture,
    expected_words,
    hear,
    make_pictures,
    masked,
    read_metrics,
    serving,
    tell,
    watch,
    words,
)

from swjax.inference import BatchEngine
from swjax.serving import EngineHangs

HEADERS = ("Content-Security-Policy", "X-Content-Type-Options", "Referrer-Policy")


@pytest.fixture(scope="module")
def video():
    return make_pictures(6, 0)


@pytest.fixture(scope="module")
def files(video):
    return [encode_picture(picture) for picture in video]


@pytest.fixture(scope="module")
def expected(engine, tokenizer, source, video):
    return expected_words(engine, tokenizer, source.record, [video])[0]


def elsewhere(session, number: int = 2, **named) -> aiohttp.ClientSession:
    """A session of another machine, as far as addresses say."""
    connector = aiohttp.TCPConnector(limit=0, local_addr=(f"127.0.0.{number}", 0))
    return aiohttp.ClientSession(session._base_url, connector=connector, **named)


async def ask(session, request: bytes, *, until: float = 5.0) -> bytes:
    """What a connection by hand is answered, up to its end."""
    raw = await connect(session)
    loop = asyncio.get_running_loop()
    heard = b""
    with contextlib.suppress(ConnectionError), raw:
        await loop.sock_sendall(raw, request)
        async with asyncio.timeout(until):
            while part := await loop.sock_recv(raw, 65_536):
                heard += part
    return heard


async def refused(session, code: str, *messages, **fields) -> str:
    """Send messages on a new socket; returns why they were refused."""
    async with session.ws_connect("/ws") as socket:
        if fields:
            await tell(socket, "open", **fields)
        for message in messages:
            await (socket.send_bytes(message) if isinstance(message, bytes) else socket.send_str(message))
        heard = await hear(socket, "error")
    assert heard[-1].get("code") == code, heard
    return heard[-1]["message"]


# One stream's fault stays with it.


def test_text_that_cannot_be_encoded_is_refused_where_it_is_read(source, engine, size, tokenizer, files, expected):
    async def run():
        async with serving(source, engine, size, tokenizer) as (server, session):
            other = asyncio.create_task(watch(session, files))
            for text in ("\ud83d", "why \udfff?", "\ud800\ud800"):
                why = await refused(session, "bad_message", json.dumps({"type": "open", "question": text}))
                assert "surrogate" in why
            heard = await watch(session, files, question="\U0001f600" * 2000, max_tail=1)
            assert heard[-1]["reason"] in ("token_limit", "capacity")
            assert words(await other) == expected
            assert server.failure is None

    asyncio.run(run())


@pytest.mark.parametrize("name", ["open", "see", "finish"])
@pytest.mark.parametrize(
    "error", [TypeError("odd"), ValueError("odd"), KeyError("odd"), MemoryError(), RecursionError()]
)
def test_whatever_is_raised_for_one_stream_ends_that_stream_alone(
    source, engine, size, tokenizer, files, expected, monkeypatch, name, error
):
    real, asked = getattr(BatchEngine, name), []

    def faulty(self, *args, **named):
        asked.append(name)
        if len(asked) == 2:
            raise error
        return real(self, *args, **named)

    async def run():
        async with serving(source, engine, size, tokenizer) as (server, session):
            monkeypatch.setattr(BatchEngine, name, faulty)
            good = await begin(session) if name == "open" else None
            if name == "see":
                good = await begin(session)
                for data in files[:2]:
                    await good.send_bytes(data)
                await hear(good, "seen")
            if name == "finish":
                await (one := await begin(session)).send_bytes(files[0])
                await one.send_bytes(files[1])
                await tell(one, "finish")
                assert (await hear(one))[-1]["type"] == "ended"
            async with session.ws_connect("/ws") as bad:
                await tell(bad, "open", question=QUESTION)
                with contextlib.suppress(ConnectionError):
                    for data in files[:2]:
                        await hear(bad, "opened", "error") if data is files[0] else None
                        await bad.send_bytes(data)
                    await tell(bad, "finish")
                heard = [] if bad.closed else await hear(bad, "error")
                assert bad.close_code in (1008, 1003, 1011) or heard[-1]["code"] != "engine_failure"
            monkeypatch.setattr(BatchEngine, name, real)
            if good is not None:
                for data in files[2 if name == "see" else 0 : 4]:
                    await good.send_bytes(data)
                await tell(good, "last")
                for data in files[4:]:
                    await good.send_bytes(data)
                after = words(await hear(good))
                assert after == expected[len(expected) - len(after) :]
                assert len(after) > TAIL
            assert words(await watch(session, files)) == expected
            metrics = await read_metrics(session)
            ended = {key: value for key, value in metrics.items() if "refused_total{" in key or "ended_total{" in key}
            reasons = [key for key in ended if any(f'"{code}"' in key for code in FAULTS[name])]
            assert sum(ended[key] for key in reasons) == 1, ended
            assert server.failure is None

    asyncio.run(run())
    assert engine.free == ROWS


FAULTS = {
    "open": ("refused", "stream_failure"),
    "see": ("bad_picture", "stream_failure"),
    "finish": ("bad_message", "stream_failure"),
}


def test_a_fault_of_a_connection_is_told_and_logged(source, engine, size, tokenizer, files, monkeypatch, caplog):
    def broken(*_args):
        raise RuntimeError("a fault of ours")

    async def run():
        async with serving(source, engine, size, tokenizer) as (_, session):
            socket = await begin(session)
            monkeypatch.setattr("swjax.serving.intake.check_picture", broken)
            await socket.send_bytes(files[0])
            heard = await hear(socket)
            assert (heard[-1]["code"], socket.close_code) == ("stream_failure", 1011)
            assert "ours" not in heard[-1]["message"]

    asyncio.run(run())
    assert "a fault of ours" in caplog.text


# Pictures.


def test_cameras_go_on_beside_hostile_pictures(source, engine, size, tokenizer, files, expected):
    hostile = [
        hostile_files.scans(7000),
        hostile_files.segments(100_000),
        hostile_files.between_markers(b"\xff", 300_000),
        hostile_files.png_chunks(100_000),
        hostile_files.png_texts(200),
        hostile_files.webp_chunks(100_000),
    ]

    async def attack(session, data):
        socket = await begin(session)
        for one in (data, data):
            await socket.send_bytes(one)
        heard = await hear(socket, "error", "seen")
        assert heard[-1].get("code") == "bad_picture", heard
        await socket.close()

    async def run():
        async with serving(source, engine, size, tokenizer) as (_, session):
            attacks = [asyncio.create_task(attack(session, data)) for data in hostile]
            heard = await asyncio.gather(*(watch(session, files) for _ in range(4)))
            assert [words(one) for one in heard] == [expected] * 4
            await asyncio.gather(*attacks)

    asyncio.run(run())


# The event loop.


@pytest.mark.parametrize("message", ['{"type": "last"}', '{"type": "finish"}', "ping"])
def test_a_flood_of_messages_is_ended(source, engine, size, tokenizer, files, message):
    async def run():
        async with serving(source, engine, size, tokenizer) as (_, session):
            socket = await begin(session)
            for data in files[:2]:
                await socket.send_bytes(data)
            with contextlib.suppress(ConnectionError):
                for _ in range(200):
                    await (socket.ping() if message == "ping" else socket.send_str(message))
            heard = await hear(socket)
            # After `finish` the answer may be over first.
            assert heard[-1].get("code") == "bad_message" or (heard[-1]["type"] == "ended" and "finish" in message)

    asyncio.run(run())


def test_others_have_their_turn_between_two_messages_of_a_client(source, engine, size, tokenizer):
    """A client whose messages have all come already is not read to the end before anybody else."""

    async def run():
        limits = {"chatter_burst": 100_000}
        async with serving(source, engine, size, tokenizer, **limits) as (server, session):
            socket = await begin(session)
            (connection,) = server._shared.connections
            read, turns = [], []
            real = connection._need_intake

            def noted(what):
                read.append(what)
                return real(what)

            connection._need_intake = noted
            for _ in range(300):
                await tell(socket, "last")
            while len(read) < 300:
                before = len(read)
                await asyncio.sleep(0)
                turns.append(len(read) - before)
            assert max(turns) == 1

    asyncio.run(run())


def test_pictures_that_came_while_the_process_was_paused_count(source, engine, size, tokenizer, files, expected):
    async def run():
        async with serving(source, engine, size, tokenizer, idle_s=0.5, send_s=0.5) as (_, session):
            socket = await begin(session)
            for data in files[:4]:
                await socket.send_bytes(data)
            time.sleep(1.2)
            await asyncio.sleep(0)
            await tell(socket, "last")
            for data in files[4:]:
                await socket.send_bytes(data)
            assert words(await hear(socket)) == expected

    asyncio.run(run())


# Connections.


MALFORMED = (
    b"nonsense\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Header: 1\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
)


def test_what_is_no_request_is_answered_and_not_logged(source, engine, size, tokenizer, caplog):
    async def run():
        async with serving(source, engine, size, tokenizer, keep_alive_s=0.3) as (_, session):
            for request in MALFORMED:
                answer = await ask(session, request)
                assert b" 400 " in answer.split(b"\r\n")[0], (request, answer)
                assert all(name.encode() in answer for name in HEADERS), answer
            assert (await read_metrics(session))['swjax_refused_total{reason="bad_request"}'] == len(MALFORMED)

    with caplog.at_level(logging.INFO):
        asyncio.run(run())
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.name.startswith("aiohttp")]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n", b" 400 "),
        (UPGRADE.replace(b"Version: 13", b"Version: 1"), b" 400 "),
        (UPGRADE.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short"), b" 400 "),
        (b"GET /page/nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", b" 404 "),
        (b"GET /nothing%ff\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", b" 40"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", b" 405 "),
        (b"GET / HTTP/1.0\r\n\r\n", b" 403 "),
        (b"GET / HTTP/1.1\r\nHost: evil@localhost\r\n\r\n", b" 403 "),
        (b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n", b" 40"),
        (UPGRADE.replace(b"Upgrade: w", b"Origin: http://\xff\xfeevil\r\nUpgrade: w"), b" 403 "),
    ],
)
def test_refusals_are_answered_with_the_headers_of_the_page(source, engine, size, tokenizer, request_, status):
    async def run():
        async with serving(source, engine, size, tokenizer, keep_alive_s=0.3) as (_, session):
            answer = await ask(session, request_)
            assert status in answer.split(b"\r\n")[0], answer
            assert all(name.encode() in answer for name in HEADERS), answer

    asyncio.run(run())


def test_frames_without_a_mask_end_the_connection(source, engine, size, tokenizer):
    async def run():
        async with serving(source, engine, size, tokenizer, send_s=0.5) as (_, session):
            opening = b'{"type": "open", "max_tail": 1}'
            bare = bytes([0x81, len(opening)]) + opening
            assert b"opened" not in await ask(session, UPGRADE + bare)
            heard = await ask(session, UPGRADE + masked(opening, 1) + masked(b'{"type": "close"}', 1))
            assert b"opened" in heard
            assert b"closed" in heard

    asyncio.run(run())


def test_silent_connections_do_not_shut_others_out(source, engine, size, tokenizer):
    limits = {"max_connections": 8, "keep_alive_s": 0.6, "request_s": 2.0}

    async def run():
        async with serving(source, engine, size, tokenizer, **limits) as (_, session):
            loop = asyncio.get_running_loop()
            silent = [await connect(session) for _ in range(40)]
            for raw in silent[::2]:
                with contextlib.suppress(ConnectionError):
                    await loop.sock_sendall(raw, b"GET / HTTP/1.1\r\nHost: loc")
            async with elsewhere(session) as other, other.get("/healthz") as response:
                assert response.status == 200
            assert (await read_metrics(session))['swjax_refused_total{reason="connections"}'] >= 32
            began_s = time.monotonic()
            for raw in silent:  # the others have gone before
                with contextlib.suppress(ConnectionError):
                    async with asyncio.timeout(5):
                        while await loop.sock_recv(raw, 1000):
                            assert time.monotonic() - began_s < 4
                raw.close()

    asyncio.run(run())


def test_a_request_that_never_ends_does(source, engine, size, tokenizer):
    limits = {"keep_alive_s": 30.0, "request_s": 0.5}

    async def run():
        async with serving(source, engine, size, tokenizer, **limits) as (_, session):
            began_s = time.monotonic()
            await ask(session, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n", until=10)
            await ask(session, b"GET / HTTP/1.1\r\nHost: loc", until=10)
            assert time.monotonic() - began_s < 5

    asyncio.run(run())


# The engine.


def test_a_hung_engine_is_told_and_does_not_keep_the_server(source, engine, size, tokenizer, files, monkeypatch):
    release, real = threading.Event(), BatchEngine.step

    def hang(self):
        release.wait(30)
        return real(self)

    async def run():
        server = None
        try:
            async with serving(source, engine, size, tokenizer, stall_s=0.2, stop_s=0.3) as (server, session):
                socket = await begin(session)
                monkeypatch.setattr(BatchEngine, "step", hang)
                for data in files[:2]:
                    await socket.send_bytes(data)
                while True:
                    async with session.get("/healthz") as response:
                        if response.status == 503:
                            assert (await response.json())["status"] == "stalled"
                            break
                    await asyncio.sleep(0.05)
                began_s = time.monotonic()
                with pytest.raises(EngineHangs, match="does not end"):
                    await server.stop()
                assert time.monotonic() - began_s < 2.5
                release.set()
                assert server._shared.engine.join(10)
        finally:
            release.set()

    asyncio.run(run())
    assert engine.free == ROWS


def test_an_engine_without_work_is_well(source, engine, size, tokenizer):
    async def run():
        async with serving(source, engine, size, tokenizer, stall_s=0.05) as (_, session):
            socket = await begin(session)
            await asyncio.sleep(0.3)
            async with session.get("/healthz") as response:
                assert response.status == 200
            await socket.close()

    asyncio.run(run())


def test_stopping_waits_for_nobody(source, engine, size, tokenizer, files):
    """Clients that read nothing, that wait for TCP to close, that are in the middle of a request."""

    async def run():
        async with serving(source, engine, size, tokenizer, send_s=30.0) as (server, session):
            raws = []
            for data in 2 * [UPGRADE, b"GET / HTTP/1.1\r\n", UPGRADE + masked(b'{"type": "open"}', 1)]:
                raws.append(await connect(session))
                await asyncio.get_running_loop().sock_sendall(raws[-1], data)
            async with asyncio.timeout(5):
                while (await read_metrics(session))["swjax_streams_opened_total"] < 2:
                    await asyncio.sleep(0.01)
            socket = await begin(session)
            await socket.send_bytes(files[0])
            began_s = time.monotonic()
            await server.stop()
            assert time.monotonic() - began_s < 2.8
            for raw in raws:
                raw.close()

    asyncio.run(run())


# Rows and the line.


@pytest.mark.parametrize("talk", [None, "last", "ping"])
def test_only_pictures_and_words_keep_a_row(source, engine, size, tokenizer, files, talk):
    async def run():
        async with serving(source, engine, size, tokenizer, idle_s=1.0) as (_, session):
            socket = await begin(session)
            began_s = time.monotonic()

            async def chat():
                with contextlib.suppress(ConnectionError):
                    while not socket.closed and talk:
                        await (socket.ping() if talk == "ping" else tell(socket, "last"))
                        await asyncio.sleep(0.1)

            chatting = asyncio.create_task(chat())
            heard = await hear(socket)
            assert heard[-1]["code"] == "idle"
            assert time.monotonic() - began_s < 1.7
            await socket.close()
            await chatting

    asyncio.run(run())


def test_a_slow_camera_keeps_its_row(source, engine, size, tokenizer, files):
    async def run():
        async with serving(source, engine, size, tokenizer, idle_s=0.8) as (_, session):
            socket = await begin(session)
            for data in files[:4]:
                await asyncio.sleep(0.4)
                await socket.send_bytes(data)
            await tell(socket, "finish")
            assert (await hear(socket))[-1]["type"] == "ended"

    asyncio.run(run())


def test_who_fills_the_line_does_not_keep_others_out(source, engine, size, tokenizer, files, expected):
    limits = {"max_waiting": 4, "max_rows_each": ROWS}

    async def run():
        async with serving(source, engine, size, tokenizer, **limits) as (_, session), elsewhere(session) as many:
            holding = [await begin(many) for _ in range(ROWS)]
            waiting = []
            for _ in range(4):
                waiting.append(await many.ws_connect("/ws"))
                await tell(waiting[-1], "open")
                await hear(waiting[-1], "waiting")
            # The line is full, but of one address: its last makes room for another one, who is next.
            good = await session.ws_connect("/ws")
            await tell(good, "open", question=QUESTION, max_tail=TAIL)
            assert (await hear(good, "waiting", "error"))[-1].get("place") == 1
            assert (await hear(waiting[3]))[-1]["code"] == "busy"
            await holding[0].close()
            assert (await hear(good, "opened"))[-1]["type"] == "opened"
            await good.close()
            for socket in (*holding, *waiting):
                await socket.close()

    asyncio.run(run())
    assert engine.free == ROWS


def test_an_address_has_a_share_of_rows_and_of_sockets(source, engine, size, tokenizer, files, expected):
    limits = {"max_rows_each": 2, "max_clients_each": 3}

    async def run():
        async with serving(source, engine, size, tokenizer, **limits) as (_, session), elsewhere(session) as other:
            first = [await begin(session) for _ in range(2)]
            third = await session.ws_connect("/ws")
            await tell(third, "open")
            assert (await hear(third, "waiting", "opened"))[-1]["type"] == "waiting"
            with pytest.raises(aiohttp.WSServerHandshakeError) as too_many:
                await session.ws_connect("/ws")
            assert too_many.value.status == 429
            assert words(await watch(other, files)) == expected
            await first[0].close()
            assert (await hear(third, "opened"))[-1]["type"] == "opened"
            for socket in (*first, third):
                await socket.close()
            while (await read_metrics(session))["swjax_clients"]:
                await asyncio.sleep(0.01)
            await (await begin(session)).close()

    asyncio.run(run())


def test_behind_a_proxy_limits_are_for_its_clients(source, engine, size, tokenizer):
    from swjax.serving import Access

    async def run():
        access = Access("127.0.0.1", proxies=("127.0.0.1",))
        async with serving(source, engine, size, tokenizer, access=access, max_clients_each=1) as (_, session):
            sockets = [
                await session.ws_connect("/ws", headers={"X-Forwarded-For": f"6.6.6.6, 10.0.0.{number}"})
                for number in range(3)
            ]
            with pytest.raises(aiohttp.WSServerHandshakeError) as too_many:
                await session.ws_connect("/ws", headers={"X-Forwarded-For": "10.0.0.1"})
            assert too_many.value.status == 429
            for socket in sockets:
                await socket.close()

    asyncio.run(run())
