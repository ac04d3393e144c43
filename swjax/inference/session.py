"""A session: questions about one video that is still arriving, and answers that are spoken meanwhile.

The interactive face of a `BatchEngine` with one row: `see` and `speak` advance it until nothing is left to do.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator

from swjax.inference.batch_engine import BatchEngine
from swjax.inference.events import FrameSeen, QuestionSeen, StreamEnded, StreamEvent, TokenSpoken
from swjax.inference.frames import Frame, check_frame, mark_last
from swjax.inference.numbers import LARGEST_COUNT
from swjax.inference.prompt import Question, images_of
from swjax.inference.room import padded_size
from swjax.inference.settings import USUAL_SETTINGS, StreamSettings, check_speed
from swjax.inference.weights import Model, Weights
from swjax.streaming.tokens import Tokenizer

CHUNK_SIZES = (16, 32, 64, 128, 256)
"""Tokens of a frame in a pass. One video has frames of one size, so a session compiles one or two of these."""

FRAME_UNITS = 64
"""Merged patches of a frame for which a session has room at first; the passes are compiled anew for larger frames."""


class StreamSession:
    """Questions about one video: one before it, and others while it is watched.

        session = StreamSession(model, tokenizer, question="What happens?")
        for event in session.run(read_frames("video.mp4", fps=2, min_pixels=3136, max_pixels=100352)):
            ...

    or by hand: `see` each frame, `speak` and `ask` between them, `finish` after the last, `speak` until `ended`.

    Args:
        model: the model, or `Weights` made of it, which any number of sessions may share.
        tokenizer: its tokenizer.
        question: what is asked before the video; or texts, images (`make_frame`) and `VIDEO_TAG` for each of its
            videos, whose frames follow one another, each ended by `last`.
        settings: how it is spoken about.
        system: the system prompt; by default that of the model's family.
        clock: seconds; events carry its time.

    Attributes:
        settings: as above.

    Raises:
        ValueError: if settings, tokenizer or question cannot be used with the model.
    """

    def __init__(
        self,
        model: Model | Weights,
        tokenizer: Tokenizer,
        *,
        question: Question,
        settings: StreamSettings = USUAL_SETTINGS,
        system: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.settings, self._clock = settings, clock
        # Nobody waits beside its one stream, so nothing is compiled ahead.
        self._engine = BatchEngine(
            model,
            rows=1,
            frame_units=FRAME_UNITS,
            max_slots=LARGEST_COUNT,
            chunk_sizes=CHUNK_SIZES,
            grow_ahead=False,
            clock=clock,
        )
        for image in images_of(question):
            self._widen(image)
        self._stream = self._engine.open(tokenizer, question=question, settings=settings, system=system, on_demand=True)
        if self._stream.finished:  # nothing is to be watched
            for _ in self._advance():
                continue

    @property
    def answer(self) -> list[int]:
        """Ids of the answer tokens spoken so far, to all questions, without end tokens."""
        return self._stream.answer

    @property
    def ended(self) -> bool:
        """Whether all that was asked is answered, up to the end token."""
        return self._stream.answered

    @property
    def frames_encoded(self) -> int:
        """Frames that have gone through the vision tower."""
        return self._stream.tally.frames_encoded

    @property
    def tokens_computed(self) -> int:
        """Tokens (of the prompt, of frames, of the answer) that have gone through the decoder."""
        return self._stream.tally.tokens_computed

    def see(self, frame: Frame, *, last: bool = False) -> FrameSeen:
        """Take a frame in: encode it once and write its keys and values.

        Args:
            frame: the next frame.
            last: whether it ends the video; the sources that close the video are then written too.

        Raises:
            ValueError: if the frame cannot be used, or the video has been finished.
        """
        self._widen(frame)
        self._engine.see(self._stream, frame, last=last)
        (seen,) = (event for event in self._advance() if isinstance(event, FrameSeen))
        return seen

    def _widen(self, frame: Frame) -> None:
        check_frame(frame, self._engine.config.vision)
        self._engine.widen(padded_size(frame.units))

    def ask(self, question: Question, *, interrupt: bool = False) -> QuestionSeen:
        """Ask another question about the video, between two frames or after it; words that are spoken later see it.

        Args:
            question: text; after the video also texts and images (`make_frame`).
            interrupt: whether the answer under way is broken off. Else its rest is spoken first.

        Raises:
            ValueError: if nothing has been seen yet, the question cannot be used, or the video has been finished while
                an answer that is not interrupted is under way.
        """
        for image in images_of(question):
            self._widen(image)
        self._engine.ask(self._stream, question, interrupt=interrupt)
        (seen,) = (event for event in self._advance() if isinstance(event, QuestionSeen))
        return seen

    def finish(self) -> None:
        """Say that no frame follows.

        Raises:
            ValueError: if there was no frame.
        """
        self._engine.finish(self._stream)
        for _ in self._advance():
            continue

    def speak(self, count: int) -> Iterator[TokenSpoken]:
        """Speak up to `count` answer tokens, fewer if the answer ends. Each sees all frames taken in so far.

        Raises:
            NotFiniteError: if the model's scores are not finite.
            ValueError: if too little has been seen to speak.
        """
        for _ in range(count):
            if self.ended or not self._stream.may_speak:
                return
            # One at a time, so that whoever stops listening has been told all that was spoken.
            self._engine.speak(self._stream, 1)
            yield from (event for event in self._advance() if isinstance(event, TokenSpoken))

    def run(self, *videos: Iterable[Frame], speed: float | None = None) -> Iterator[StreamEvent]:
        """Watch whole videos and speak by the schedule meanwhile: so many tokens after each frame, then the rest.

        Args:
            videos: the frames of each video of the question; one is read ahead, to know which is the last.
            speed: 1 takes frames in at the video's own pace, 2 twice as fast; None as fast as possible.
        """
        check_speed(speed)
        began, newest = self._clock(), -1
        for frame, last in itertools.chain.from_iterable(map(mark_last, videos)):
            if speed is not None:
                time.sleep(max(0.0, frame.video_s / speed - (self._clock() - began)))
            seen = self.see(frame, last=last)
            newest = seen.index
            yield seen
            if not self._stream.finished and (words := self.settings.words_after(newest)):
                yield from self.speak(words)
            if self.ended:
                break
        yield from self.speak(self.settings.words_after(newest, last=True))
        wall_s = self._clock() - self._stream.opened_s
        yield StreamEnded("end_token" if self.ended else "token_limit", self.text(), wall_s)

    def text(self) -> str:
        """The answer so far, up to the last whole character."""
        return self._stream.text

    def _advance(self) -> Iterator[StreamEvent]:
        """Run passes until there is no work; an error of the stream is raised."""
        while self._stream.fault is None and self._engine.has_work:
            yield from (event for _, event in self._engine.step())
        if self._stream.fault is not None:
            raise self._stream.fault
