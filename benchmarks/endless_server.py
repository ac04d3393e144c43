"""Many streams without end in one server: what its memory does, and how long the longest pause of any stream is.

    python benchmarks/endless_server.py                                        # 16 cameras, ten minutes
    python benchmarks/endless_server.py --minutes 2 --memory rekv:sources=256,words=64

A small model with random weights is served (`swjax serve`, a process of its own) with a memory. Cameras, each with an
address of its own in 127.0.0.0/8, stream pictures until the time is over. A pause is the time from when a frame's last
picture was sent until its first word came, or between two words of one stream.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from hostile import make_checkpoint, picture, resident_mb, serve, session_of

WARM_S = 60.0
"""Seconds after which nothing may grow."""


@dataclass
class Camera:
    """What one camera was told.

    Attributes:
        spoken: seconds from each frame's last picture to its first word.
        gaps: seconds between each word and the one before it.
        ended: what ended its stream, or went wrong, before the time was over.
    """

    spoken: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    ended: str = ""


async def film(port: int, number: int, seconds: float, pace: float) -> Camera:
    """Stream pictures at their own pace until the time is over."""
    camera, files = Camera(), [picture(100 * number + index) for index in range(8)]
    sent_s: dict[int, float] = {}

    async def send(socket: aiohttp.ClientWebSocketResponse) -> None:
        began = time.monotonic()
        for index in range(int(seconds * pace)):
            await asyncio.sleep(max(0.0, began + index / pace - time.monotonic()))
            await socket.send_bytes(files[index % len(files)])
            sent_s[index // 2] = time.monotonic()
        await socket.close()

    async with session_of(f"127.0.1.{number + 1}", port) as session, session.ws_connect("/ws") as socket:
        await socket.send_str(json.dumps({"type": "open", "question": "What happens?", "max_tail": 12}))
        sending, newest, before = None, -1, None
        async for message in socket:
            heard, now = json.loads(message.data), time.monotonic()
            match heard["type"]:
                case "opened":
                    sending = asyncio.create_task(send(socket))
                case "word":
                    camera.gaps += [now - before] if before else []
                    before = now
                    if heard["after_frame"] != newest:
                        newest = heard["after_frame"]
                        camera.spoken.append(now - sent_s.pop(newest))
                case "ended" | "error":
                    camera.ended = str(heard.get("reason") or heard["message"])
        if sending is not None:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await sending
    return camera


async def run(
    port: int, server: int, cameras: int, seconds: float, pace: float
) -> tuple[list[Camera], list[tuple[float, float]]]:
    """All cameras at once, and the server's memory every five seconds: seconds and megabytes."""
    began, memory = time.monotonic(), []

    async def sample() -> None:
        while True:
            memory.append((time.monotonic() - began, resident_mb(server)))
            await asyncio.sleep(5)

    sampling = asyncio.create_task(sample())
    found = await asyncio.gather(*(film(port, number, seconds, pace) for number in range(cameras)))
    sampling.cancel()
    return list(found), memory


def main() -> None:
    """Serve, film, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of streaming (10)")
    parser.add_argument("--cameras", type=int, default=16, help="streams at once (16)")
    parser.add_argument("--memory", default="window:sources=256,words=64", help="what they keep (%(default)s)")
    parser.add_argument("--pace", type=float, default=2.0, help="pictures a second of each, two to a frame (2)")
    args = parser.parse_args()
    limits = ["--rows", str(args.cameras), "--max-rows-each", "1", "--max-seconds", "86400", "--max-tail", "40"]
    limits += ["--idle-seconds", "120", "--picture-size", "64x64", "--memory", args.memory]
    seconds = 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, log = Path(folder) / "model", Path(folder) / "log"
        make_checkpoint(checkpoint, ends=False)
        server, port = serve(checkpoint, log, limits)
        try:
            cpu = time.process_time()
            cameras, memory = asyncio.run(run(port, server.pid, args.cameras, seconds, args.pace))
            clock = os.sysconf("SC_CLK_TCK")
            ticks = Path(f"/proc/{server.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
            own, its = time.process_time() - cpu, sum(map(int, ticks)) / clock
        finally:
            server.kill()
    by_camera = [camera.spoken for camera in cameras]
    spoken = sorted(one for of_camera in by_camera for one in of_camera)
    gaps = [gap for camera in cameras for gap in camera.gaps]
    warm = [mb for at, mb in memory if at > min(WARM_S, seconds / 2)]
    tenth = max(1, len(warm) // 10)
    rows = {
        "streams that ended before the time": str(sum(bool(camera.ended) for camera in cameras)),
        "frames spoken of, of those sent": f"{len(spoken):,} of {int(seconds * args.pace / 2) * args.cameras:,}",
        "from a frame's last picture to its first word, median": f"{statistics.median(spoken):.2f} s",
        "99th percentile": f"{spoken[int(0.99 * len(spoken))]:.2f} s",
        "longest pause of any stream": f"{spoken[-1]:.2f} s",
        "longest gap between two words of a stream": f"{max(gaps):.2f} s",
        "median of the stream that waited longest": f"{max(map(statistics.median, by_camera)):.2f} s",
        "memory of the server, after a minute and at the end": " and ".join(
            f"{statistics.median(part):.0f}" for part in (warm[:tenth], warm[-tenth:])
        )
        + " MB",
        "CPU of the server, of the cameras": f"{its:.0f} s, {own:.0f} s",
    }
    print(f"{args.cameras} cameras, {args.pace:g} pictures a second, {args.minutes:g} minutes, {args.memory}")
    print(f"load average {os.getloadavg()[1]:.1f}\n\n| | |\n| --- | ---: |")
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    for number, camera in enumerate(cameras):
        if camera.ended:
            print(f"camera {number}: {camera.ended}")


if __name__ == "__main__":
    main()
