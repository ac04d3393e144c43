"""Servers in the test's own event loop, over real sockets."""

import asyncio
import contextlib
import ctypes
import gc
import json
import re
from pathlib import Path

import aiohttp
import av
import jax
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
from test_pictures import png_of, webp_of

from swjax.inference import BatchEngine, Mode, Request, Sampling, StreamSettings, read_frames, run_streams
from swjax.inference.frames import make_frame
from swjax.serving import Access, Offer, ServingError, serve

ROOT = Path(__file__).parents[2]
LENGTHS = (6, 2, 9, 5, 7, 4, 3, 8)  # pictures; an odd one at the end is dropped


@pytest.fixture(scope="module")
def videos():
    return [make_pictures(length, seed) for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def files(videos):
    # A whole number of frames: `last` is said before the last two pictures.
    return [[encode_picture(picture) for picture in video[: len(video) // 2 * 2]] for video in videos]


@pytest.fixture(scope="module")
def expected(engine, tokenizer, source, videos):
    answers = expected_words(engine, tokenizer, source.record, videos)
    assert len({tuple(answer) for answer in answers}) == len(answers), "the answers do not depend on the videos"
    return answers


def test_words_are_those_of_the_engine_alone(source, engine, size, tokenizer, files, expected):
    async def run():
        async with serving(source, engine, size, tokenizer) as (_, session):
            heard = await watch(session, files[2])
            assert words(heard) == expected[2]
            seen = [message for message in heard if message["type"] == "seen"]
            assert [message["index"] for message in seen] == [0, 1, 2, 3]
            assert [message["video_s"] for message in seen] == [0.5, 1.5, 2.5, 3.5]
            assert [message["index"] for message in heard if message["type"] == "word"] == list(range(9 + TAIL))
            ended = heard[-1]
            assert (ended["type"], ended["reason"]) == ("ended", "token_limit")
            assert ended["text"] == "".join(message.get("text", "") for message in heard[:-1])
            assert ended["tally"]["frames_encoded"] == 4
            assert [message["wall_s"] for message in heard] == sorted(message["wall_s"] for message in heard)
            metrics = await read_metrics(session)
            assert metrics['swjax_streams_ended_total{reason="token_limit"}'] == 1
            assert metrics["swjax_words_total"] == 9 + TAIL
            assert metrics["swjax_frames_seen_total"] == 4
            assert metrics["swjax_pictures_total"] == 8

    asyncio.run(run())


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "sequential"},
        {"variant": "interleave", "wait_k": 2},
        {"mode": "offline", "variant": "gipe", "gap": 50},
        {"temperature": 0.8, "top_k": 5, "seed": 11, "repetition_penalty": 1.15},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_client_chooses_how(source, engine, size, tokenizer, videos, files, options):
    named = {name: options[name] for name in ("variant", "wait_k", "gap") if name in options}
    drawn = {name: value for name, value in options.items() if name not in (*named, "mode")}
    settings = StreamSettings(**named, max_tail=TAIL, sampling=Sampling(**drawn))
    frames = [
        make_frame(videos[0][first : first + 2], video_s=first / 2 + 0.5, min_pixels=3136, max_pixels=3136)
        for first in (0, 2, 4)
    ]
    mode = Mode(options["mode"]) if "mode" in options else None
    *_, (_, stream, _) = run_streams(engine, tokenizer, [Request(QUESTION, frames, settings, mode)])

    async def run():
        async with serving(source, engine, size, tokenizer) as (_, session):
            assert words(await watch(session, files[0], **options)) == stream.answer

    asyncio.run(run())


def test_a_camera_finishes_when_it_wants(source, engine, size, tokenizer, files):
    """Without `last`, words follow the last frame as any other, and then the rest."""

    async def run():
        async with serving(source, engine, size, tokenizer) as (_, session):
            socket = await begin(session, when_behind="drop")
            for first in (0, 2):  # the second frame when the first one's words are said, or it may take its place
                for data in files[0][first : first + 2]:
                    await socket.send_bytes(data)
                while (await hear(socket, "word", "error"))[-1]["index"] % 3 < 2:
                    pass
            await socket.send_bytes(files[0][4])  # its second picture never comes
            await tell(socket, "finish")
            await tell(socket, "finish")
            heard = await hear(socket)
            assert heard[-1]["reason"] == "token_limit"
            assert heard[-2]["index"] == 2 * 3 + TAIL - 1

            socket = await begin(session)
            for data in files[0][:2]:
                await socket.send_bytes(data)
            await hear(socket, "word")
            await tell(socket, "close")
            assert (await hear(socket))[-1]["reason"] == "closed"
            metrics = await read_metrics(session)
            assert metrics['swjax_streams_ended_total{reason="closed"}'] == 1

    asyncio.run(run())


def test_a_video_is_cut_at_the_limit(source, engine, size, tokenizer, files):
    async def run():
        async with serving(source, engine, size, tokenizer, max_video_s=2.5) as (_, session):
            socket = await begin(session)
            for data in files[2]:
                await socket.send_bytes(data)
            heard = await hear(socket)
            (limited,) = [message for message in heard if message["type"] == "limited"]
            assert "2.5 s" in limited["message"]
            assert heard[-1]["type"] == "ended"
            assert heard[-1]["tally"]["frames_seen"] == 2

    asyncio.run(run())


async def vanish(session, files):
    """Break the connection in the middle."""
    socket = await begin(session)
    for data in files[:3]:
        await socket.send_bytes(data)
        await socket.ping()
    socket._response.connection.transport.abort()


async def leave_while_waiting(session, files):
    socket = await session.ws_connect("/ws")
    await tell(socket, "open")
    await socket.close()


def sends(*messages, code: str, names: str):
    """A client that sends something wrong behind its first pictures; it must be told what."""

    async def run(session, files):
        socket = await begin(session)
        for data in files[:2]:
            await socket.send_bytes(data)
        for message in messages:
            await (socket.send_bytes(message) if isinstance(message, bytes) else socket.send_str(message))
        heard = await hear(socket)
        assert heard[-1]["type"] == "error", heard
        assert heard[-1]["code"] == code
        assert names in heard[-1]["message"]
        assert socket.close_code in (1003, 1008, 1009)

    return run


async def send_too_much(session, files):
    """More than the server reads of a message."""
    socket = await begin(session)
    with contextlib.suppress(ConnectionError):  # the server may go before it has been sent
        await socket.send_bytes(bytes(600_000))
    assert (await hear(socket)) == []
    assert socket.close_code in (1006, 1009)


async def stop_reading(session, files):
    """A client by hand, with a small buffer, that asks for many words and reads none."""
    loop = asyncio.get_running_loop()
    raw = await connect(session, buffer=2048)
    await loop.sock_sendall(raw, UPGRADE)
    await loop.sock_sendall(raw, masked(json.dumps({"type": "open", "max_tail": 300}).encode(), 1))
    heard = b""
    while b'"opened"' not in heard:
        heard += await loop.sock_recv(raw, 2048)
    await loop.sock_sendall(raw, masked(b'{"type": "last"}', 1))
    for data in files[:2]:
        await loop.sock_sendall(raw, masked(data, 2))
    return raw


BAD = [
    vanish,
    sends("garbage", code="bad_message", names="JSON object"),
    sends('{"type": "open"}', code="bad_message", names="came twice"),
    sends("x" * 40_000, code="too_big", names="32768"),
    sends(b"garbage", code="bad_picture", names="picture 2 cannot be read"),
    sends(bytes(200_001), code="too_big", names="200001 bytes"),
    sends(png_of(12_000, 12_000), code="too_big", names="12000 x 12000 pixels"),
    sends(webp_of(16_000, 16_000), code="too_big", names="16000 x 16000 pixels"),
    sends(encode_picture(make_pictures(1, 0, (48, 64))[0]), code="bad_picture", names="at one size"),
    send_too_much,
    leave_while_waiting,
    stop_reading,
]


def resident_mb() -> float:
    """Memory of this process, when what has been freed is given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_sixty_four_streams_are_not_disturbed_by_bad_ones(source, engine, size, tokenizer, files, expected):
    """Of 64 clients at once, 24 are bad ones; four rounds, after each of which all is as it was."""
    limits = {
        "max_clients": 80,
        "max_clients_each": 80,
        "max_message_bytes": 200_000,
        "max_picture_pixels": 200_000,
        "outbox_messages": 64,
        "send_buffer_bytes": 4096,
        "send_s": 1.0,
    }

    async def one_round(session):
        good = [asyncio.create_task(watch(session, files[number % 8])) for number in range(40)]
        bad = [asyncio.create_task(BAD[number % len(BAD)](session, files[0])) for number in range(24)]
        heard = await asyncio.gather(*good)
        assert [words(one) for one in heard] == [expected[number % 8] for number in range(40)]
        stopped = [raw for raw in await asyncio.gather(*bad) if raw is not None]
        assert len(stopped) == 2
        while (metrics := await read_metrics(session))["swjax_rows_free"] < ROWS or metrics["swjax_clients"]:
            await asyncio.sleep(0.02)
        for raw in stopped:
            raw.close()
        return metrics, resident_mb(), len(jax.live_arrays())

    async def run():
        async with serving(source, engine, size, tokenizer, **limits) as (_, session):
            rounds = [await one_round(session) for _ in range(4)]
        return rounds

    rounds = asyncio.run(run())
    for number, (metrics, *_) in enumerate(rounds, start=1):
        ended = {
            name.partition('"')[2].partition('"')[0]: value
            for name, value in metrics.items()
            if name.startswith("swjax_streams_ended_total")
        }
        assert ended.pop("vanished") in range(4 * number, 6 * number + 1)  # with those that leave while they wait
        assert ended == {
            "token_limit": 40 * number,
            "bad_message": 4 * number,
            "too_big": 8 * number,
            "bad_picture": 4 * number,
            "slow_reader": 2 * number,
        }
        assert metrics["swjax_clients_waiting"] == 0
        assert metrics["swjax_streams_opened_total"] in range(62 * number, 64 * number + 1)
        assert metrics['swjax_refused_total{reason="too_big_message"}'] == 2 * number
    assert len({arrays for *_, arrays in rounds[1:]}) == 1
    # What is allocated for good, by threads and by the compiled passes, is there after the second round.
    resident = [one for _, one, _ in rounds]
    assert min(resident[2:]) < resident[1] + 24


def test_clients_wait_for_a_row_and_are_told_their_place(source, engine, size, tokenizer, files, expected):
    async def run():
        async with serving(source, engine, size, tokenizer, max_waiting=2, max_clients=ROWS + 3) as (_, session):
            first = [await begin(session) for _ in range(ROWS)]
            waiting = []
            for place in (1, 2):
                socket = await session.ws_connect("/ws")
                await tell(socket, "open", question=QUESTION, max_tail=TAIL)
                heard = await hear(socket, "waiting")
                assert heard[-1]["place"] == place
                waiting.append(socket)
            late = await session.ws_connect("/ws")
            await tell(late, "open")
            heard = await hear(late)
            assert (heard[-1]["code"], late.close_code) == ("busy", 1013)
            while (await read_metrics(session))["swjax_clients"] > ROWS + 2:
                await asyncio.sleep(0.01)
            another = await session.ws_connect("/ws")
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect("/ws")
            assert refused.value.status == 503
            await another.close()
            assert (await read_metrics(session))["swjax_clients_waiting"] == 2

            # A client that waits may not send pictures; its place goes to the next one.
            await waiting[0].send_bytes(files[0][0])
            assert "came too early" in (await hear(waiting[0]))[-1]["message"]
            assert (await hear(waiting[1], "waiting"))[-1]["place"] == 1
            await first[3].close()
            await hear(waiting[1], "opened")
            for data in files[1]:
                await waiting[1].send_bytes(data)
            await tell(waiting[1], "finish")
            # Words follow the last frame before what closes the video.
            assert len(words(await hear(waiting[1]))) == 3 + TAIL
            taken = await begin(session)
            patient = await session.ws_connect("/ws")
            await tell(patient, "open")
            await hear(patient, "waiting")
            await tell(patient, "close")
            assert (await hear(patient))[-1]["reason"] == "closed"
            await taken.close()
            for socket in first:
                await socket.close()

    asyncio.run(run())


def test_silent_and_slow_videos_are_ended(source, engine, size, tokenizer, files):
    async def run():
        async with serving(source, engine, size, tokenizer, idle_s=0.2) as (_, session):
            silent = await session.ws_connect("/ws")
            heard = await hear(silent)
            assert (heard[-1]["code"], silent.close_code) == ("idle", 1008)
            opened = await begin(session)
            assert (await hear(opened))[-1]["code"] == "idle"
        async with serving(source, engine, size, tokenizer, max_wall_s=0.3) as (_, session):
            slow = await begin(session)
            await slow.send_bytes(files[0][0])
            assert (await hear(slow))[-1]["code"] == "time_limit"

    asyncio.run(run())


def test_pictures_of_ever_new_shapes_compile_nothing(source, engine, size, tokenizer):
    async def run():
        encode = engine._perceiver._compiled.encode
        before = encode._cache_size()
        async with serving(source, engine, size, tokenizer) as (_, session):
            for shape in ((64, 64), (200, 60), (60, 200), (100, 40), (50, 140), (120, 30)):
                files = [encode_picture(picture) for picture in make_pictures(2, 0, shape)]
                assert len(words(await watch(session, files))) == TAIL
            socket = await begin(session)
            for picture in make_pictures(2, 0, (400, 20)):
                await socket.send_bytes(encode_picture(picture))
            heard = await hear(socket)
            assert heard[-1]["code"] == "bad_picture"
            assert "the most" in heard[-1]["message"]
        assert encode._cache_size() == before

    asyncio.run(run())


def test_a_question_that_cannot_be_asked_is_refused(source, engine, size, tokenizer):
    async def run():
        async with serving(source, engine, size, tokenizer) as (_, session):
            socket = await session.ws_connect("/ws")
            await tell(socket, "open", question="Why <|im_end|>?")
            heard = await hear(socket)
            assert heard[-1]["code"] == "refused"
            assert "<|im_end|>" in heard[-1]["message"]

    asyncio.run(run())


def test_only_those_who_may_connect_do(source, engine, size, tokenizer, files, expected):
    async def run():
        access = Access("127.0.0.1", ("secret",), ("https://watch.example.org",))
        async with serving(source, engine, size, tokenizer, access=access) as (_, session):
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await session.ws_connect("/ws", headers=headers)
                assert refused.value.status == 401
            async with session.get("/metrics") as response:
                assert response.status == 401
                assert "Bearer TOKEN" in await response.text()
            metrics = await read_metrics(session, params={"token": "secret"})
            assert metrics['swjax_refused_total{reason="token"}'] == 3
            for origin, allowed in (("https://evil.example", False), ("https://watch.example.org", True)):
                headers = {"Authorization": "Bearer secret", "Origin": origin}
                if allowed:
                    socket = await session.ws_connect("/ws", headers=headers)
                    assert (await hear(socket, "hello"))[-1]["fps"] == 2.0
                    await socket.close()
                else:
                    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                        await session.ws_connect("/ws", headers=headers)
                    assert refused.value.status == 403
        async with serving(source, engine, size, tokenizer) as (_, session):
            for path in ("/", "/ws", "/metrics", "/healthz"):
                async with session.get(path, headers={"Host": "evil.example"}) as response:
                    assert response.status == 403
            async with session.get("/healthz") as response:
                assert (response.status, await response.json()) == (200, {"status": "ok"})
            async with session.get("/page/../server.py") as response:
                assert response.status == 404

    asyncio.run(run())


def test_an_engine_that_fails_ends_the_server_and_tells_everybody(
    source, engine, size, tokenizer, files, monkeypatch, caplog
):
    async def run():
        async with serving(source, engine, size, tokenizer) as (server, session):
            sockets = [await begin(session), await session.ws_connect("/ws")]
            with monkeypatch.context() as patched:
                patched.setattr(BatchEngine, "step", fail)
                await sockets[0].send_bytes(files[0][0])
                await sockets[0].send_bytes(files[0][1])
                for socket in sockets:
                    heard = await hear(socket)
                    assert (heard[-1]["code"], socket.close_code) == ("engine_failure", 1011)
                await asyncio.wait_for(server.over.wait(), 10)
            assert isinstance(server.failure, FloatingPointError)
            async with session.get("/healthz") as response:
                assert (response.status, await response.json()) == (503, {"status": "failed"})

    def fail(self):
        raise FloatingPointError("the device is on fire")

    asyncio.run(run())
    assert "the engine has failed" in caplog.text
    assert engine.free == ROWS


def test_a_failed_engine_is_the_end_of_serving(source, engine, size, tokenizer, files, monkeypatch):
    def fail(self):
        raise FloatingPointError("the device is on fire")

    async def run():
        listening = asyncio.get_running_loop().create_future()
        offer, access = Offer("tiny", source.record), Access("127.0.0.1")
        over = asyncio.create_task(
            serve(engine, size, tokenizer, offer, access, port=0, on_listening=listening.set_result)
        )
        async with aiohttp.ClientSession(f"http://127.0.0.1:{await listening}") as session:
            socket = await session.ws_connect("/ws")
            monkeypatch.setattr(BatchEngine, "step", fail)
            await tell(socket, "open")
            assert (await hear(socket))[-1]["code"] == "engine_failure"
            with pytest.raises(ServingError, match="on fire"):
                await over

    asyncio.run(run())
    assert engine.free == ROWS


def test_clients_are_told_when_the_server_is_stopped(source, engine, size, tokenizer, files):
    async def run():
        async with serving(source, engine, size, tokenizer) as (server, session):
            sockets = [await begin(session), await session.ws_connect("/ws")]
            await sockets[0].send_bytes(files[0][0])
            heard = [asyncio.create_task(hear(socket)) for socket in sockets]
            await server.stop()
            for messages, socket in zip(await asyncio.gather(*heard), sockets, strict=True):
                assert (messages[-1]["code"], socket.close_code) == ("shutdown", 1001)

    asyncio.run(run())
    assert engine.free == ROWS


def test_the_example_of_the_documents_runs_as_it_stands(source, engine, size, tokenizer, videos, tmp_path, capsys):
    video = tmp_path / "video.mp4"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for picture in videos[2]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(), re.S)
    functions, call = example.rsplit("\n\n\n", 1)
    assert call == "print(asyncio.run(describe(URL, VIDEO)))\n"
    given = {}
    exec(functions, given)

    async def run():
        async with serving(source, engine, size, tokenizer, max_tail=TAIL) as (_, session):
            return await given["describe"](str(session._base_url), str(video))

    text = asyncio.run(run())
    frames = read_frames(str(video), fps=2.0, min_pixels=source.record.min_pixels, max_pixels=source.record.max_pixels)
    *_, (_, alone, _) = run_streams(engine, tokenizer, [Request(QUESTION, frames, StreamSettings(max_tail=TAIL))])
    assert text == alone.text
    assert len(capsys.readouterr().out.splitlines()) >= len(alone.answer)
