"""A server among strangers: four cameras beside every attack that is known, all at once, on this machine alone.

    python benchmarks/hostile.py                  # five minutes
    python benchmarks/hostile.py --minutes 1

A small model with random weights is served (`swjax serve`, a process of its own). Four cameras, each with an address
of its own in 127.0.0.0/8, stream their videos at their own pace, again and again: first alone, then beside the attacks,
each of which comes from an address of its own as well. What must hold: cameras are told the words that they were told
alone, no frame is seen later than a second after its last picture was sent, the server's memory and log stay small,
and SIGTERM ends it in three seconds while all of that goes on. The attacks are run with the lowest priority, since
strangers have processors of their own; on a machine that does other work at the same time the latencies mean little.
"""

import argparse
import asyncio
import contextlib
import io
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "serving"))
import hostile_files
from serving_clients import UPGRADE, masked

CAMERAS, ROWS, FPS = 4, 12, 2
FRAMES = 6
LIMITS = [
    "--max-seconds",
    "20",
    "--max-tail",
    "40",
    "--idle-seconds",
    "5",
    "--max-waiting",
    "32",
    "--max-clients",
    "256",
]
LIMITS += ["--rows", str(ROWS), "--max-rows-each", "2", "--max-clients-each", "24", "--picture-size", "64x64"]
ALONE_S = 20.0


@dataclass
class Watched:
    """What the cameras were told: answers of each, seconds that frames took to be seen, and that streams waited."""

    answers: dict[int, list[list[int]]] = field(default_factory=dict)
    late_s: list[float] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def make_checkpoint(folder: Path, *, ends: bool = True) -> None:
    """A model that has learned nothing, but says other words about other pictures, and may end an answer or not."""
    from flax import nnx

    from swjax.data.tokenizer import SHIPPED_TOKENIZER, load_tokenizer
    from swjax.hub import save_hf
    from swjax.hub.tokenizer_files import copy_tokenizer
    from swjax.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig
    from swjax.streaming import SpecialTokens

    tokenizer = load_tokenizer(None)
    config = Qwen2_5_VLConfig.preset(
        "tiny",
        text={"vocab_size": len(tokenizer), "initializer_range": 0.25, "num_layers": 2},
        vision={"initializer_range": 0.15},
        video_token_id=SpecialTokens.from_tokenizer(tokenizer).video_pad,
    )
    record = {"variant": "gdpe", "wait_k": 3, "min_pixels": 56 * 56, "max_pixels": 56 * 56}
    model = Qwen2_5_VL(config, rngs=nnx.Rngs(3))
    if not ends:
        decoder = model.decoder
        head = decoder.embedding_vd if config.text.tie_word_embeddings else decoder.head_vd
        head[...] = head[...].at[SpecialTokens.from_tokenizer(tokenizer).im_end].set(0)
    save_hf(model, folder, more_config={"streaming": record})
    copy_tokenizer(SHIPPED_TOKENIZER, folder)


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """A file that shows a few large fields of colour."""
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize(size).save(file, "PNG")
    return file.getvalue()


def session_of(address: str, port: int) -> aiohttp.ClientSession:
    """A client of an address of its own."""
    connector = aiohttp.TCPConnector(limit=0, local_addr=(address, 0))
    return aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector)


async def film(port: int, camera: int, until: float, watched: Watched) -> None:
    """One camera: streams the same video again and again."""
    files = [picture(100 * camera + number) for number in range(2 * FRAMES)]
    async with session_of(f"127.0.1.{camera + 1}", port) as session:
        while time.monotonic() < until:
            try:
                await one_stream(session, camera, files, watched)
            except (aiohttp.ClientError, ConnectionError, RuntimeError) as error:
                watched.errors.append(f"camera {camera}: {error!r}")
                await asyncio.sleep(0.2)


async def one_stream(session: aiohttp.ClientSession, camera: int, files: list[bytes], watched: Watched) -> None:
    """One video at its own pace."""
    began_s, sent_s, answer = time.monotonic(), {}, []
    async with session.ws_connect("/ws") as socket:

        async def send() -> None:
            for number, data in enumerate(files):
                if number == len(files) - 2:
                    await socket.send_str('{"type": "last"}')
                await socket.send_bytes(data)
                sent_s[number // 2] = time.monotonic()
                await asyncio.sleep(1 / FPS)

        sending = None
        await socket.send_str(json.dumps({"type": "open", "question": "What happens?", "max_tail": 12}))
        async for message in socket:
            heard, now = json.loads(message.data), time.monotonic()
            match heard["type"]:
                case "opened":
                    watched.waits_s.append(now - began_s)
                    sending = asyncio.create_task(send())
                case "seen":
                    watched.late_s.append(now - sent_s[heard["index"]])
                case "word":
                    answer.append(heard["token_id"])
                case "ended":
                    watched.answers.setdefault(camera, []).append(answer)
                case "error":
                    watched.errors.append(f"camera {camera}: {heard['code']}: {heard['message']}")
        if sending is not None:
            sending.cancel()


async def film_all(port: int, seconds: float) -> Watched:
    """All cameras for some time."""
    watched, until = Watched(), time.monotonic() + seconds
    await asyncio.gather(*(film(port, camera, until, watched) for camera in range(CAMERAS)))
    return watched


# The attacks. Each is one round, which is repeated; what it meets with is its own affair.


async def opened(session: aiohttp.ClientSession) -> aiohttp.ClientWebSocketResponse:
    """A socket whose stream has a row."""
    socket = await session.ws_connect("/ws")
    await socket.send_str('{"type": "open", "max_tail": 40}')
    async for message in socket:
        if json.loads(message.data)["type"] in ("opened", "error"):
            break
    return socket


def says(*texts: str) -> "Attack":
    """Sends texts, one socket each."""

    async def attack(session: aiohttp.ClientSession, _port: int, _address: str) -> None:
        for text in texts:
            async with session.ws_connect("/ws") as socket:
                await socket.send_str(text)
                async for _ in socket:
                    pass

    return attack


def shows(*files: bytes, leaves: bool = False) -> "Attack":
    """Sends pictures, one stream for each, and leaves or hears what becomes of it."""

    async def attack(session: aiohttp.ClientSession, _port: int, _address: str) -> None:
        for data in files:
            async with await opened(session) as socket:
                await socket.send_bytes(data)
                await socket.send_bytes(data)
                await socket.send_str('{"type": "finish"}')
                if not leaves:
                    async for _ in socket:
                        pass

    return attack


def floods(text: str | None) -> "Attack":
    """Sends the same text, or pings, without end."""

    async def attack(session: aiohttp.ClientSession, _port: int, _address: str) -> None:
        async with await opened(session) as socket:
            for _ in range(5000):
                await (socket.ping() if text is None else socket.send_str(text))

    return attack


async def raw(address: str, port: int, data: bytes, hold_s: float = 0.0) -> None:
    """Sends bytes by hand, and perhaps holds the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    try:
        writer.write(data)
        await writer.drain()
        async with asyncio.timeout(hold_s or 2.0):
            await reader.read()
    finally:
        writer.close()


def sends(*parts: bytes, hold_s: float = 0.0, at_once: int = 1) -> "Attack":
    """Sends bytes by hand, each on some connections at once."""

    async def attack(_session: aiohttp.ClientSession, port: int, address: str) -> None:
        await asyncio.gather(
            *(raw(address, port, part, hold_s) for part in parts for _ in range(at_once)), return_exceptions=True
        )

    return attack


async def takes_rows(session: aiohttp.ClientSession, _port: int, _address: str) -> None:
    """Opens as many streams as it can, and says nothing but `last`."""

    async def one() -> None:
        async with session.ws_connect("/ws") as socket:
            await socket.send_str('{"type": "open"}')
            async for _ in socket:
                await asyncio.sleep(0.5)
                await socket.send_str('{"type": "last"}')

    await asyncio.gather(*(one() for _ in range(72)), return_exceptions=True)


async def vanishes(session: aiohttp.ClientSession, _port: int, _address: str) -> None:
    """Breaks the connection in the middle of a video."""
    socket = await opened(session)
    await socket.send_bytes(picture(1))
    socket._response.connection.transport.abort()


Attack = Callable[[aiohttp.ClientSession, int, str], Awaitable[None]]


def attacks() -> dict[str, Attack]:
    """All attacks, by name."""
    noise = random.Random(0)
    mutants = [
        bytearray(file) for file in (picture(2), hostile_files.small(), hostile_files.exif(bytes(60))) for _ in "12"
    ]
    for mutant in mutants:
        for _ in range(8):
            mutant[noise.randrange(4, len(mutant))] = noise.randrange(256)
    shapes = [(64 + 40 * number, 300 - 20 * number) for number in range(13)]
    words = UPGRADE + masked(b'{"type": "open", "max_tail": 40}', 1)
    return {
        "text that cannot be encoded": says(
            *(json.dumps({"type": "open", "question": text}) for text in ("\ud83d", "\udfff"))
        ),
        "numbers of 400 digits": says(
            *(f'{{"type": "open", "{name}": {"9" * 400}}}' for name in ("temperature", "seed"))
        ),
        "no JSON, deep JSON": says("{", "[" * 30_000, '{"type": ' + "[" * 900 + "]" * 900 + "}"),
        "JPEGs of 7,000 scans": shows(hostile_files.scans(7000, 1024, 1024)),
        "the same, and away": shows(*(4 * [hostile_files.scans(30, 1912, 1072)]), leaves=True),
        "170,000 segments or chunks": shows(hostile_files.segments(170_000), hostile_files.png_chunks(170_000)),
        "bytes that fill": shows(hostile_files.between_markers(b"\xff", 2_000_000)),
        "texts that unpack": shows(hostile_files.png_texts(800)),
        "WebP that lies": shows(hostile_files.webp_chunks(100_000), hostile_files.webp_of_two_sizes()),
        "odd EXIF, odd bytes": shows(*map(bytes, mutants)),
        "thirteen odd shapes": shows(*(picture(3, shape) for shape in shapes)),
        "messages of 4 MiB": shows(bytes(4_200_000)),
        "floods of last": floods('{"type": "last"}'),
        "floods of finish": floods('{"type": "finish"}'),
        "floods of pings": floods(None),
        "malformed HTTP": sends(b"x\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"\x16\x03\x01\x02\x00", at_once=40),
        "300 silent connections": sends(b"", hold_s=3.0, at_once=300),
        "heads that never end": sends(b"GET / HTTP/1.1\r\nHost: loc", hold_s=3.0, at_once=50),
        "unmasked frames": sends(UPGRADE + b"\x81\x02hi", at_once=8),
        "floods of empty frames": sends(words + masked(b"", 1) * 20_000),
        "sockets that read nothing": sends(words + masked(picture(4), 2) * 2, hold_s=5.0, at_once=4),
        "72 sockets without a word": takes_rows,
        "vanishing": vanishes,
    }


def attack_for_ever(port: int, counts: "multiprocessing.Queue[tuple[str, int]]", seconds: float) -> None:
    """A process of all attackers."""
    os.nice(19)

    async def again(number: int, name: str, attack: Attack, until: float) -> None:
        address, rounds = f"127.0.0.{number + 2}", 0
        async with session_of(address, port) as session:
            while time.monotonic() < until:
                with contextlib.suppress(Exception):  # whatever the server does to it
                    async with asyncio.timeout(20):
                        await attack(session, port, address)
                rounds += 1
                await asyncio.sleep(0.1)
        counts.put((name, rounds))

    async def all_of_them() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(again(number, *one, until) for number, one in enumerate(attacks().items())))

    asyncio.run(all_of_them())


def resident_mb(process: int) -> float:
    """Memory of a process and of those that it has started."""
    total = 0
    for one in (process, *map(int, subprocess.run(["pgrep", "-P", str(process)], capture_output=True).stdout.split())):
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1])
    return total * os.sysconf("SC_PAGE_SIZE") / 2**20


def serve(checkpoint: Path, log: Path, limits: list[str] = LIMITS) -> tuple[subprocess.Popen[str], int]:
    """Start the server; returns its process and its port."""
    command = [sys.executable, "-m", "swjax.commands.main", "serve", "--checkpoint", str(checkpoint), "--port", "0"]
    with log.open("wb") as errors:
        server = subprocess.Popen([*command, *limits], stdout=subprocess.PIPE, stderr=errors, text=True)
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.match(r"listening on http://127\.0\.0\.1:(\d+)/", line):
            return server, int(found[1])
    raise SystemExit(f"the server does not start:\n{log.read_text()}")


def main() -> None:
    """Run the cameras alone, then among the attackers, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="of cameras beside attacks (5)")
    arguments = parser.parse_args()
    seconds = 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, log = Path(folder) / "model", Path(folder) / "log"
        make_checkpoint(checkpoint)
        server, port = serve(checkpoint, log)
        try:
            alone = asyncio.run(film_all(port, ALONE_S))
            before_mb, log_before = resident_mb(server.pid), log.stat().st_size
            counts: multiprocessing.Queue[tuple[str, int]] = multiprocessing.get_context("spawn").Queue()
            # They go on until the server has gone.
            attackers = multiprocessing.get_context("spawn").Process(
                target=attack_for_ever, args=(port, counts, seconds + 20), daemon=True
            )
            attackers.start()
            among = asyncio.run(film_all(port, seconds))
            # The least of some: what a decoder holds for one picture comes and goes.
            samples_mb = []
            for _ in range(20):
                samples_mb.append(resident_mb(server.pid))
                time.sleep(0.1)
            after_mb, log_after = min(samples_mb), log.stat().st_size
            server.send_signal(signal.SIGTERM)
            began_s = time.monotonic()
            status = server.wait(60)
            stop_s = time.monotonic() - began_s
            rounds = Counter(dict(counts.get(timeout=120) for _ in attacks()))
            attackers.join(30)
        finally:
            server.kill()
        report(alone, among, rounds, after_mb - before_mb, log_after - log_before, stop_s, status)


def report(
    alone: Watched, among: Watched, rounds: Counter[str], more_mb: float, log: int, stop_s: float, status: int
) -> None:
    """Print what held and what did not."""
    expected = {camera: answers[0] for camera, answers in alone.answers.items()}
    streams = [(camera, answer) for camera, answers in among.answers.items() for answer in answers]
    same = sum(answer == expected[camera] for camera, answer in streams)
    distinct = len({tuple(answer) for answer in expected.values()})
    late_s, alone_s = sorted(among.late_s), sorted(alone.late_s)
    all_same = same == len(streams) > 0 and distinct == CAMERAS
    medians = [f"{one[len(one) // 2]:.3f} s" for one in (late_s, alone_s)]
    rows = [
        ("streams with exactly the words of the run alone", f"{same} of {len(streams)}", all_same),
        ("streams of cameras that ended with an error", str(len(among.errors)), not among.errors),
        ("frames seen", str(len(late_s)), len(late_s) > 0),
        ("a frame is seen after, median (alone)", f"{medians[0]} ({medians[1]})", True),
        ("the latest (alone)", f"{late_s[-1]:.3f} s ({alone_s[-1]:.3f} s)", late_s[-1] < 1.0),
        ("longest wait for a row", f"{max(among.waits_s):.2f} s", True),
        ("more memory, with the decoders", f"{more_mb:.1f} MB", more_mb < 50),
        ("log", f"{log / 1000:.1f} kB", log < 1_000_000),
        ("SIGTERM to exit, status", f"{stop_s:.2f} s, {status}", stop_s < 3 and status == 0),
    ]
    print("| | | holds |\n| --- | --- | --- |")
    for name, value, holds in rows:
        print(f"| {name} | {value} | {'yes' if holds else '**no**'} |")
    print("\nAttacks, and how often each was begun: " + ", ".join(f"{name} {count}" for name, count in rounds.items()))
    for error in among.errors[:10]:
        print(error)


if __name__ == "__main__":
    main()
