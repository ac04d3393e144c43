"""Whole videos through a batched engine: frames are handed over by the clock or as fast as they are taken in."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from swjax.inference.batch_engine import BatchEngine, Stream
from swjax.inference.events import StreamEvent
from swjax.inference.frames import Frame, mark_last
from swjax.inference.settings import USUAL_SETTINGS, Mode, StreamSettings, WhenBehind

READ_AHEAD = 2
"""Frames that are handed over before they are needed, where they do not come by the clock."""


@dataclass(frozen=True)
class Request:
    """A question about a video.

    Attributes:
        question: what is asked.
        frames: the video's frames, read as they are needed; one more is read, to know which is the last.
        settings: how it is spoken about.
        mode: what happens at a time; by default the quickest that the variant allows.
        speed: 1 hands frames over at the video's own pace, 2 twice as fast; None as fast as they are taken in.
        when_behind: what becomes of frames that the engine cannot take in in time, where a speed is given.
    """

    question: str
    frames: Iterable[Frame]
    settings: StreamSettings = USUAL_SETTINGS
    mode: Mode | None = None
    speed: float | None = None
    when_behind: WhenBehind = "delay"


@dataclass
class _Feed:
    index: int
    request: Request
    stream: Stream
    frames: Iterator[tuple[Frame, bool]]
    began_s: float
    next: tuple[Frame, bool] | None

    @property
    def due_s(self) -> float:
        """When the next frame is to be handed over."""
        if self.next is None or self.stream.ended:
            return float("inf")
        if self.request.speed is None:
            return float("-inf") if self.stream.backlog < READ_AHEAD else float("inf")
        return self.began_s + self.next[0].video_s / self.request.speed


def run_streams(
    engine: BatchEngine,
    tokenizer: Any,
    requests: Iterable[Request],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[int, Stream, StreamEvent]]:
    """Answer requests, as many at a time as the engine has rows; the next one begins when a row is free.

    Args:
        engine: the engine.
        tokenizer: its model's tokenizer.
        requests: read one by one.
        clock: seconds; the engine's own.
        sleep: waits for some seconds.

    Yields:
        The number of the request, its stream, and what has happened.
    """
    waiting = enumerate(requests)
    feeds: list[_Feed] = []
    more = True
    while more or feeds:
        while more and engine.free:
            more = (begun := _begin(engine, tokenizer, waiting, clock)) is not None
            feeds += [begun] if begun else []
        for feed in feeds:
            while feed.due_s <= clock():
                assert feed.next is not None
                engine.see(feed.stream, feed.next[0], last=feed.next[1])
                feed.next = next(feed.frames, None)
        if not engine.has_work and feeds:
            sleep(max(0.0, min(feed.due_s for feed in feeds) - clock()))
            continue
        index = {feed.stream: feed.index for feed in feeds}
        for stream, event in engine.step():
            yield index[stream], stream, event
        feeds = [feed for feed in feeds if feed.stream.ended is None]


def _begin(
    engine: BatchEngine, tokenizer: Any, waiting: Iterator[tuple[int, Request]], clock: Callable[[], float]
) -> _Feed | None:
    """Open a stream for the next request; None if there is none."""
    for index, request in waiting:
        frames = mark_last(request.frames)
        first = next(frames, None)
        if first is None:
            raise ValueError(f"request {index} ({request.question!r}) is about a video without frames")
        stream = engine.open(
            tokenizer,
            question=request.question,
            settings=request.settings,
            mode=request.mode,
            when_behind=None if request.speed is None else request.when_behind,
        )
        return _Feed(index, request, stream, frames, clock(), first)
    return None
