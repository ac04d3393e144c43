"""Processes that decode clients' pictures, because a decoder cannot be stopped in any other way than with its process.

Each client has one frame at a time here. Who has sent pictures that are quickly decoded comes before those whose
pictures take long, or are not known yet, and the last free process is kept for the quick ones: a camera does not wait
for somebody else's hostile files.
"""

import asyncio
import json
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from swjax.data.pictures import PictureError
from swjax.plain import Json
from swjax.serving import decode_worker
from swjax.serving.decode_worker import HEAD, READY, pack
from swjax.serving.patience import in_time
from swjax.streaming import DEFAULT_GEOMETRY, Geometry

QUICK_S = 0.25
"""Seconds for a frame from which on it is not quick; two pictures of 1920 x 1080 take about a tenth."""

_START_S = 60.0
_WEIGHT = 10.0  # seconds that a client's place in line falls back for each second that its frames take

# Found by a linker, or by Python; no more is handed on, and no token is.
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "HOME", "LANG")


class DecodersError(RuntimeError):
    """The processes do not start."""


@dataclass(eq=False)
class DecodeShare:
    """What one client's frames have taken to decode, in seconds; at first it is not known to be quick."""

    frame_s: float = QUICK_S


@dataclass(eq=False)
class _Job:
    share: DecodeShare
    message: bytes
    answer: "asyncio.Future[tuple[Json, bytes]]"
    came_s: float = field(default_factory=time.monotonic)

    @property
    def rank(self) -> float:
        return self.came_s + _WEIGHT * self.share.frame_s


class Decoders:
    """A few processes for all clients together.

    Args:
        count: how many.
        limit_s: seconds after which one that has not answered is killed, and another takes its place.
    """

    def __init__(self, count: int, limit_s: float):
        self._count, self._limit_s = count, limit_s
        self._processes: set[Process] = set()
        self._free: list[Process] = []
        self._waiting: list[_Job] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start them all.

        Raises:
            DecodersError: if they do not start.
        """
        await asyncio.gather(*(self._begin() for _ in range(self._count)))

    async def stop(self) -> None:
        """Kill them all, whatever they do."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        for job in self._waiting:
            job.answer.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(self._end(process) for process in tuple(self._processes)))

    async def patches(
        self,
        share: DecodeShare,
        files: Sequence[bytes],
        sizes: Sequence[tuple[int, int]],
        number: int,
        *,
        min_pixels: int,
        max_pixels: int,
        geometry: Geometry = DEFAULT_GEOMETRY,
    ) -> tuple[bytes, tuple[int, int]]:
        """The patches of a frame of these files, uint8[rows * columns, C] as bytes, and its rows and columns.

        Args:
            share: the client's.
            files: the pictures, which have been measured.
            sizes: width and height of each.
            number: of the first of them in the video.
            min_pixels, max_pixels: area to which they are resized.
            geometry: sizes of patches and tokens.

        Raises:
            PictureError: if they cannot be decoded, or not in time.
        """
        head = {"bytes": [len(data) for data in files], "sizes": sizes, "number": number}
        head |= {"min_pixels": min_pixels, "max_pixels": max_pixels, "geometry": asdict(geometry)}
        job = _Job(share, pack(head, b"".join(files)), asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._assign()
        reply, body = await job.answer
        if "error" in reply:
            raise PictureError(reply["error"])
        rows, columns = reply["grid"]
        return body, (rows, columns)

    def _assign(self) -> None:
        """Give free processes to those who wait."""
        self._waiting = [job for job in self._waiting if not job.answer.done()]
        while self._free and self._waiting:
            able = self._waiting
            if len(self._free) == 1 and self._count > 1:
                able = [job for job in able if job.share.frame_s < QUICK_S]
                if not able:
                    return  # whoever holds the others gives one back in time
            job = min(able, key=lambda job: job.rank)
            self._waiting.remove(job)
            self._spawn(self._work(self._free.pop(), job))

    async def _work(self, process: Process, job: _Job) -> None:
        """Do one job, which goes on when its client has gone; a process that does not answer is replaced."""
        began_s = time.monotonic()
        try:
            answer = await in_time(_ask(process, job.message), self._limit_s)
        except (TimeoutError, EOFError, OSError) as error:
            self._spawn(self._replace(process))
            late = f"took longer than {self._limit_s:g} s to decode; send smaller ones, as plain JPEG or PNG files"
            why = late if isinstance(error, TimeoutError) else "broke the decoder; send JPEG, PNG or WebP files"
            answer = {"error": f"the last pictures {why}"}, b""
        else:
            self._free.append(process)
        job.share.frame_s = (job.share.frame_s + time.monotonic() - began_s) / 2
        if not job.answer.done():
            job.answer.set_result(answer)
        self._assign()

    async def _begin(self) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # or the modules beside it could be taken for those of other packages
            str(Path(decode_worker.__file__)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,  # or decoders' warnings would let clients fill the log
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for the server, which ends them
        )
        self._processes.add(process)
        assert process.stdout is not None
        try:
            if await in_time(process.stdout.readexactly(1), _START_S) != READY:
                raise EOFError
        except (EOFError, TimeoutError) as error:
            await self._end(process)
            raise DecodersError(
                f"the process that decodes pictures does not start; try {sys.executable} -P {decode_worker.__file__}"
            ) from error
        self._free.append(process)
        self._assign()

    async def _end(self, process: Process) -> None:
        if process.returncode is None:
            process.kill()
        await process.communicate()  # until its pipes are closed
        self._processes.discard(process)

    async def _replace(self, process: Process) -> None:
        await self._end(process)
        while True:
            try:
                return await self._begin()
            except (DecodersError, OSError):  # the machine may be out of memory or processes; it may have some again
                await asyncio.sleep(1.0)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _ask(process: Process, message: bytes) -> tuple[Json, bytes]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(message)
    await process.stdin.drain()
    sizes = HEAD.unpack(await process.stdout.readexactly(HEAD.size))
    head, body = [await process.stdout.readexactly(size) for size in sizes]
    return json.loads(head), body


def _environment() -> dict[str, str]:
    given = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    # Its arithmetic is small, and threads of its own would take the engine's cores.
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return {**given, **threads, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
