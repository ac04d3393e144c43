"""Video that arrives while it is watched: a camera, a network stream, another program's output.

Nothing is known of its end, nor of its length, and it cannot be sought in. Its times are those of its own clock, from
its first frame on; where the clock jumps, as when a camera starts again, they go on without the jump.
"""

import math
import queue
import sys
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from swjax.data.decoding import TIMESTAMP_TOLERANCE_S, TimedFrame, VideoError
from swjax.data.orientation import Orientation, read_orientation
from swjax.data.video import MAX_FRAME_PIXELS
from swjax.notice import notify

Picture = UInt8[np.ndarray, "height width 3"]
Item = TypeVar("Item")

TIMEOUT_S = 20.0
"""How long a source may be silent before it is taken for gone."""

LONGEST_JUMP_S = 10.0
"""A longer step of the source's clock is no time in which a picture was on screen."""

_NETWORK = ("http", "https", "tcp")
_CAMERAS = ("rtsp", "rtsps", "rtmp", "rtmps", "udp", "rtp", "srt")


def is_live(source: str) -> bool:
    """Whether a name is that of a source which is read as it comes: `-`, a device, or the address of a stream."""
    return source == "-" or source.startswith("/dev/") or source.partition("://")[0] in (*_NETWORK, *_CAMERAS)


def waits_for_nobody(source: str) -> bool:
    """Whether a live source goes on when it is not read: a camera does; a file's server and a pipe wait."""
    return source.startswith("/dev/") or source.partition("://")[0] in _CAMERAS


def iter_live(
    source: str, fps: float, *, max_frame_pixels: int = MAX_FRAME_PIXELS, timeout_s: float = TIMEOUT_S
) -> Iterator[tuple[float, Picture]]:
    """Yield (time in seconds, RGB picture) at a steady rate, as the source shows it.

    What cannot be decoded is skipped and counted. A source that breaks off ends; a notice says why.

    Args:
        source: `-` for standard input, a device such as /dev/video0, or an address.
        fps: samples a second, taken at times 0, 1/fps, 2/fps ... after the first frame.
        max_frame_pixels: refuse larger frames.
        timeout_s: how long an address may be silent.

    Raises:
        VideoError: the source cannot be opened, has no video, or changes the size of its frames.
        ValueError: fps is not above 0.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be above 0, got {fps}")
    with _opened(source, timeout_s) as container:
        if not container.streams.video:
            raise VideoError(f"{source} has no video")
        taken, since, step_s = 0, 0.0, 0.0
        shown: TimedFrame | None = None

        def on_screen(end_s: float) -> Iterator[tuple[float, Picture]]:
            due = math.ceil((end_s - TIMESTAMP_TOLERANCE_S) * fps)
            if shown is not None and due > taken:
                picture = shown.rgb()
                yield from ((number / fps, picture) for number in range(taken, due))

        for timed in _timed(source, container, max_frame_pixels):
            for sample in on_screen(timed.time_s):
                taken += 1
                yield sample
            step_s, since, shown = timed.time_s - since, timed.time_s, timed
        if shown is None:
            raise VideoError(f"{source} ended before its first frame")
        yield from on_screen(max(since + step_s, 1 / fps if not taken else 0.0))


def newest(items: Iterator[Item], most: int) -> Iterator[Item]:
    """Items of a source that waits for nobody: read in a thread; of those that wait, the oldest are dropped.

    Args:
        items: what is read.
        most: how many may wait.
    """
    waiting: queue.Queue[tuple[str, Any]] = queue.Queue(most + 1)
    stopped, dropped = threading.Event(), 0

    def read() -> None:
        nonlocal dropped
        last: tuple[str, Any] = ("end", None)
        try:
            for item in items:
                if stopped.is_set():
                    return
                while waiting.qsize() >= most:
                    dropped += bool(_taken(waiting))
                waiting.put(("item", item))
        except Exception as error:  # raised again where the items are wanted
            last = ("error", error)
        waiting.put(last)

    threading.Thread(target=read, daemon=True).start()
    try:
        while True:
            kind, value = waiting.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stopped.set()
        if dropped:
            notify(f"{dropped} frames were dropped, as they came faster than they could be taken in")


def _taken(waiting: "queue.Queue[tuple[str, Any]]") -> bool:
    try:
        waiting.get_nowait()
    except queue.Empty:
        return False
    return True


def _opened(source: str, timeout_s: float) -> Any:
    """The source as FFmpeg opens it."""
    try:
        if source == "-":
            return av.open(sys.stdin.buffer)
        if source.startswith("/dev/"):
            return av.open(source, format="v4l2")
        options = {"rtsp_transport": "tcp"} if source.startswith("rtsp") else {}
        return av.open(source, timeout=timeout_s, options=options)
    except (av.FFmpegError, OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or error
        hint = "send MPEG-TS, Matroska or fragmented MP4" if source == "-" else "check that it is there and sends video"
        raise VideoError(f"{source} cannot be opened ({what}); {hint}") from error


def _timed(source: str, container: Any, max_frame_pixels: int) -> Iterator[TimedFrame]:
    """Frames with their times, which never run backwards."""
    stream, converter = container.streams.video[0], VideoReformatter()
    offset: float | None = None
    last_s, step_s, damaged = 0.0, 0.0, 0
    size: tuple[int, int] | None = None
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                damaged += 1
                continue
            for frame in frames:
                if frame.is_corrupt:
                    damaged += 1
                    continue
                if frame.width * frame.height > max_frame_pixels:
                    raise VideoError(
                        f"{source} has frames of {frame.width} x {frame.height} pixels, more than the limit of "
                        f"{max_frame_pixels}; let it send smaller ones"
                    )
                now_s = last_s + step_s if frame.time is None else frame.time - (offset or 0.0)
                if offset is None or not -1e-6 <= now_s - last_s <= LONGEST_JUMP_S:
                    offset = (frame.time or 0.0) - (0.0 if offset is None else last_s + step_s)
                    now_s = (frame.time or 0.0) - offset
                step_s, last_s = now_s - last_s, now_s
                if size not in (None, (frame.width, frame.height)):
                    raise VideoError(f"{source} changes its frame size from {size} to {(frame.width, frame.height)}")
                size = frame.width, frame.height
                yield TimedFrame(now_s, frame, read_orientation(frame) or Orientation(), converter)
    except av.FFmpegError as error:
        if size is None:
            raise VideoError(f"{source} cannot be decoded ({error.strerror})") from error
        notify(f"{source} broke off after {last_s:.1f} s ({error.strerror})")
    finally:
        if damaged:
            notify(f"{source}: {damaged} damaged packets or frames were skipped")
