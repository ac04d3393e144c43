"""Whole videos through a batched engine: frames are handed over by the clock or as fast as they are taken in."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from swjax.data.example import VIDEO_TAG
from swjax.inference.batch_engine import BatchEngine, Stream
from swjax.inference.events import StreamEvent
from swjax.inference.frames import Frame, check_frame, mark_last
from swjax.inference.numbers import shown
from swjax.inference.prompt import Question
from swjax.inference.settings import USUAL_SETTINGS, Mode, StreamSettings, WhenBehind, check_speed
from swjax.models.config import VisionConfig
from swjax.streaming.tokens import Tokenizer

LONGEST_SLEEP_S = 60.0
"""Seconds after which the clock is looked at again, however late the next frame is due."""

READ_AHEAD = 2
"""Frames that are handed over before they are needed, where they do not come by the clock."""


@dataclass(frozen=True)
class Request:
    """A question about a video.

    Attributes:
        question: what is asked, of the video, or as `BatchEngine.open` takes it.
        frames: the video's frames, read as they are needed; one more is read, to know which is the last.
        settings: how it is spoken about.
        mode: what happens at a time; by default the quickest that the variant allows.
        speed: 1 hands frames over at the video's own pace, 2 twice as fast; None as fast as they are taken in.
        when_behind: what becomes of frames that the engine cannot take in in time, where a speed is given.
        asked: questions in mid-video, each with its time in seconds, ascending: it is asked behind the frames that have
            come by then.
        later: questions of the turns that follow the video, each asked when the answer before has ended or has reached
            its limit. The video is watched to its end for both.
        others: frames of the further videos of the question.
        system: the system prompt; by default that of the model's family.
    """

    question: Question
    frames: Iterable[Frame] = ()
    settings: StreamSettings = USUAL_SETTINGS
    mode: Mode | None = None
    speed: float | None = None
    when_behind: WhenBehind = "delay"
    asked: tuple[tuple[float, str], ...] = ()
    later: tuple[Question, ...] = ()
    others: tuple[Iterable[Frame], ...] = ()
    system: str | None = None

    def __post_init__(self) -> None:
        check_speed(self.speed)


@dataclass
class _Feed:
    index: int
    request: Request
    stream: Stream
    frames: Iterator[tuple[Frame, bool]]
    began_s: float
    next: tuple[Frame, bool] | None
    num_asked: int = 0

    def hand_over(self, engine: BatchEngine, clock: Callable[[], float]) -> None:
        """Hand over the frames that are due; an error of theirs ends their stream at the engine's next step."""
        try:
            while self.due_s <= clock():
                assert self.next is not None
                for _, question in self._asked_before(self.next[0].video_s):
                    engine.ask(self.stream, question)
                engine.see(self.stream, self.next[0], last=self.next[1])
                self.next = next(self.frames, None)
                for turn in () if self.next else self.request.later:
                    engine.ask(self.stream, turn)
        except Exception as error:
            self.stream.fault = error

    def _asked_before(self, video_s: float) -> Sequence[tuple[float, str]]:
        """The questions that come before a frame, once."""
        first, asked = self.num_asked, self.request.asked
        self.num_asked += sum(time_s < video_s for time_s, _ in asked[first:])
        return asked[first : self.num_asked]

    @property
    def due_s(self) -> float:
        """When the next frame is to be handed over."""
        if self.next is None or self.stream.ended or self.stream.fault:
            return float("inf")
        if self.request.speed is None:
            return float("-inf") if self.stream.backlog < READ_AHEAD else float("inf")
        return self.began_s + self.next[0].video_s / self.request.speed


def run_streams(
    engine: BatchEngine,
    tokenizer: Tokenizer,
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
        The number of the request, its stream, and what has happened. A stream whose frames cannot be used ends with the
        reason `fault`.

    Raises:
        Exception: when all others have ended, the error of the first request for which no stream could be opened.
    """
    waiting = enumerate(requests)
    feeds: list[_Feed] = []
    refused: list[Exception] = []
    more = True
    while more or feeds:
        while more and engine.free:
            more = (numbered := next(waiting, None)) is not None
            try:
                feeds += [_begin(engine, tokenizer, *numbered, clock)] if numbered else []
            except Exception as error:
                refused.append(error)
        for feed in feeds:
            feed.hand_over(engine, clock)
        if not engine.has_work and feeds:
            sleep(min(max(0.0, min(feed.due_s for feed in feeds) - clock()), LONGEST_SLEEP_S))
            continue
        index = {feed.stream: feed.index for feed in feeds}
        for stream, event in engine.step():
            if stream in index:  # the engine may have streams of others
                yield index[stream], stream, event
        feeds = [feed for feed in feeds if feed.stream.ended is None]
    if refused:
        if refused[1:]:
            refused[0].add_note(f"{len(refused) - 1} more requests could not begin, the next one as: {refused[1]}")
        raise refused[0]


def _begin(
    engine: BatchEngine, tokenizer: Tokenizer, index: int, request: Request, clock: Callable[[], float]
) -> _Feed:
    """Open a stream for a request."""
    if not isinstance(request, Request):
        raise ValueError(f"request {index} must be a Request, got {shown(request)}")
    videos = (mark_last(_checked(video, engine.config.vision)) for video in (request.frames, *request.others))
    frames = itertools.chain.from_iterable(videos)
    first = next(frames, None)
    needs_video = isinstance(request.question, str) or VIDEO_TAG in request.question
    if first is None and needs_video:
        raise ValueError(f"request {index} ({shown(request.question)}) is about a video without frames")
    stream = engine.open(
        tokenizer,
        question=request.question,
        settings=request.settings,
        system=request.system,
        mode=request.mode,
        when_behind=None if request.speed is None else request.when_behind,
        watches_on=bool(request.asked or request.later),
    )
    for question in () if first else request.later:
        engine.ask(stream, question)
    return _Feed(index, request, stream, frames, clock(), first)


def _checked(frames: Iterable[Frame], config: VisionConfig) -> Iterator[Frame]:
    """Frames whose time can be waited for."""
    for frame in frames:
        check_frame(frame, config)
        yield frame
