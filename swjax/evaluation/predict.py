"""What a model says about the videos of a split, several of them streamed at a time."""

import itertools
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from swjax.data.decisions import question_times
from swjax.data.example import IMAGE_TAG, VIDEO_TAG, ExampleError, Picture, Rejected, Video, VideoExample
from swjax.data.text import join_texts
from swjax.evaluation.ahead import work_ahead
from swjax.inference import (
    BatchEngine,
    Frame,
    FrameSeen,
    Mode,
    Model,
    QuestionSeen,
    Request,
    Stream,
    StreamEnded,
    StreamEvent,
    StreamSettings,
    TokenSpoken,
    Weights,
    run_streams,
)
from swjax.inference.prompt import encode_prompt
from swjax.inference.room import bounded_room
from swjax.inference.sizes import CHUNK_SIZES, TILE
from swjax.plain import Json
from swjax.streaming import SpecialTokens, random_schedule
from swjax.streaming.tokens import Tokenizer

Schedule = Callable[[str, int], Sequence[int]]
"""From the key of an example and the number of its frames to the tokens spoken after each."""

ROWS = 8
"""Videos at a time where nothing else is asked for."""

FIRST_SLOTS = 16_384
"""Slots that a row's cache has at first, at most: a data set may claim any duration, and rows grow if they must."""

SLOTS_OF_ALL_ROWS = 2**20
"""Slots up to which all rows may grow together."""


@dataclass(frozen=True)
class LaterAnswer:
    """The answer to a question in mid-video, or of a later turn, which is asked when the video and all answers ended.

    Attributes:
        question: what was asked.
        reference: the example's answer.
        text, ended, token_ids, words, wall_s: as for `Prediction`.
        after_frame: for each token, the newest frame that it could see, of a question in mid-video.
        asked_after: the newest frame when it was asked; None for a later turn.
    """

    question: str
    reference: str
    text: str
    ended: bool
    token_ids: tuple[int, ...]
    words: tuple[str, ...]
    wall_s: tuple[float, ...]
    after_frame: tuple[int, ...] = ()
    asked_after: int | None = None


@dataclass(frozen=True)
class Prediction:
    """An answer about one video, and those of the turns that follow.

    Attributes:
        key: of the example.
        reference: the example's caption.
        text: the answer.
        ended: whether it ended by itself, not at the limit on tokens.
        frames: frames that were seen.
        duration_s: time in the video, in seconds, at which its last frame was whole, seen or not.
        token_ids: the answer's tokens.
        words: what each token adds to the text.
        after_frame: for each token, the newest frame that it could see.
        video_s: for each token, the time in the video, in seconds, at which that frame was whole: the earliest at which
            the token can be spoken.
        wall_s: for each token, seconds since the stream began.
        frame_wall_s: for each token, seconds since the stream began until that frame could be seen by words.
        mode: the engine's; the two times above depend on it, on the rows and on the machine.
        rows: videos at a time.
        later: the answers to questions in mid-video, then those of the turns that follow, in their order.
    """

    key: str
    reference: str
    text: str
    ended: bool
    frames: int
    duration_s: float
    token_ids: tuple[int, ...]
    words: tuple[str, ...]
    after_frame: tuple[int, ...]
    video_s: tuple[float, ...]
    wall_s: tuple[float, ...]
    frame_wall_s: tuple[float, ...]
    mode: str
    rows: int
    later: tuple[LaterAnswer, ...] = ()


def predict(
    model: Model | Weights,
    tokenizer: Tokenizer,
    examples: Iterable[VideoExample],
    *,
    question: str,
    settings: StreamSettings,
    read: Callable[[VideoExample], Iterable[Frame]],
    frame_units: int,
    mode: Mode | None = None,
    rows: int = ROWS,
    schedule: Schedule | None = None,
    all_slots: int = SLOTS_OF_ALL_ROWS,
) -> Iterator[Prediction | Rejected]:
    """Stream videos as fast as possible, and yield what is said about each, or why it could not be used.

    Videos are decoded as a whole, ahead of their turn and in threads; one that cannot be is set aside before it has a
    row. A row whose answer has ended takes the next video. Outcomes come in the order in which they are ready. What is
    said does not depend on the number of rows nor on the videos beside, up to the rounding of sums: in float32 the
    greedy answers are the same, in bfloat16 two tokens that are nearly as likely may change places.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        examples: what to answer about; an example's own question goes before `question`.
        question: what to ask.
        settings: how to stream.
        read: the frames of an example's `video`; called in threads, and may raise `ExampleError`. Of a mixed chat it is
            given each of the `media` as the `video`.
        frame_units: the number of merged patches that frames are likely to have at most. Videos with larger frames
            wait until all others are done, and then have an engine of their own.
        mode: what happens at a time; by default the quickest that the variant allows.
        rows: videos at a time.
        schedule: counts in the place of wait-k.
        all_slots: slots of the engine's cache up to which all rows may grow together; a video that does not fit into
            its row's part is set aside.

    Raises:
        ValueError: if the variant does not allow the mode.
    """
    mode = Mode.usual(settings.variant) if mode is None else Mode(mode)
    mode.check(settings.variant)
    chat, unit = model.config.chat, model.config.geometry.token_patches
    special = SpecialTokens.from_tokenizer(tokenizer, chat)
    waiting, prompts = [], {}
    for example in examples:
        asked = example.question or question
        try:
            later = "".join(turn for turn, _ in example.later)
            if example.video is None and VIDEO_TAG in later:
                raise ExampleError("a later turn shows a video, and streams watch theirs at first")
            if asked not in prompts:
                prompts[asked] = len(encode_prompt(tokenizer, special, asked, chat))
            waiting.append(example)
        except ExampleError as error:
            yield Rejected(example.key, str(error))
    while waiting:
        longest = max(prompts[example.question or question] for example in waiting)
        slots, word_slots = _first_slots(longest, waiting, special, settings, frame_units)
        max_slots = max(slots, all_slots // rows)
        engine = BatchEngine(
            model,
            rows=min(rows, len(waiting)),
            frame_units=frame_units,
            slots=slots,
            word_slots=word_slots,
            max_slots=max_slots,
        )
        books = _Books(waiting, question, settings, read, frame_units * unit, mode, rows, max_slots, schedule)
        for number, stream, event in run_streams(engine, tokenizer, books.requests()):
            books.note(number, stream, event)
            yield from books.outcomes()
        yield from books.outcomes()
        waiting = [example for example, _ in books.larger]
        frame_units = max((patches // unit for _, patches in books.larger), default=frame_units)


def perturbed_schedule(wait_k: int, seed: int) -> Schedule:
    """Random schedules at wait-k's mean pace: after each frame 0 to 2k tokens, each count as likely, independently.

    The paper perturbs schedules without giving a distribution; this is ours. A video's schedule depends on the seed
    and on its key alone, not on what is evaluated beside it.
    """

    def schedule(key: str, frames: int) -> Sequence[int]:
        counts = random_schedule(frames, low=0, high=2 * wait_k, seed=(seed, zlib.crc32(key.encode())))
        return tuple(int(count) for count in counts)

    return schedule


def blank_frames(frames: Iterable[Frame]) -> Iterator[Frame]:
    """The same frames with nothing on them, all mid-grey: what a model says to these, it has not seen."""
    for frame in frames:
        yield replace(frame, patches=np.full_like(frame.patches, 128))


@dataclass
class _Book:
    """What has happened in one stream."""

    example: VideoExample
    duration_s: float
    seen: list[FrameSeen] = field(default_factory=list)
    asked: list[tuple[QuestionSeen, int]] = field(default_factory=list)
    spoken: list[TokenSpoken] = field(default_factory=list)

    def answer(self, number: int) -> list[TokenSpoken]:
        """The words that answer a question."""
        return [event for event in self.spoken if event.question == number]


@dataclass
class _Books:
    """The requests of one engine, and what becomes of them.

    Attributes:
        frame_patches: size of the largest frame that the engine takes.
        larger: examples with larger frames, and the patches of the largest.
    """

    examples: Sequence[VideoExample]
    question: str
    settings: StreamSettings
    read: Callable[[VideoExample], Iterable[Frame]]
    frame_patches: int
    mode: Mode
    rows: int
    max_slots: int
    schedule: Schedule | None
    larger: list[tuple[VideoExample, int]] = field(default_factory=list)
    _open: dict[int, _Book] = field(default_factory=dict)
    _ready: deque[Prediction | Rejected] = field(default_factory=deque)

    def requests(self) -> Iterator[Request]:
        """One for each video that can be read and has frames of the engine's size."""
        numbers = itertools.count()
        for example, shown in work_ahead(self.examples, lambda example: _read_media(example, self.read)):
            if isinstance(shown, ExampleError):
                self._ready.append(Rejected(example.key, str(shown)))
                continue
            videos = [frames for item, frames in shown if not isinstance(item, Picture)]
            patches = max((len(frame.patches) for _, frames in shown for frame in frames), default=0)
            if patches > self.frame_patches:
                self.larger.append((example, patches))
                continue
            seen_s = np.array([frame.video_s for frames in videos for frame in frames])
            try:
                times = question_times([one.time_s for one in example.questions], seen_s)
            except ExampleError as error:
                self._ready.append(Rejected(example.key, str(error)))
                continue
            settings = self.settings
            if self.schedule is not None:
                items = sum(map(len, videos)) + len(example.questions)
                settings = replace(settings, counts=tuple(self.schedule(example.key, items)))
            asked = tuple((float(time), one.text) for time, one in zip(times, example.questions, strict=True))
            turns = [turn or self.question for turn in (example.question, *(turn for turn, _ in example.later))]
            media = iter(shown)
            first, *later = turns if example.video is not None else [_parts(turn, media) for turn in turns]
            self._open[next(numbers)] = _Book(example, videos[-1][-1].video_s if videos else 0.0)
            watched, *others = [_hand_out(frames) for frames in videos or [deque()]]
            yield Request(
                first,
                watched,
                settings,
                self.mode,
                asked=asked,
                later=tuple(later),
                others=tuple(others),
                system=example.system,
            )

    def note(self, number: int, stream: Stream, event: StreamEvent) -> None:
        """Something has happened in the stream of a request."""
        book = self._open[number]
        if isinstance(event, FrameSeen):
            book.seen.append(event)
        elif isinstance(event, TokenSpoken):
            book.spoken.append(event)
        elif isinstance(event, QuestionSeen):
            book.asked.append((event, len(book.seen) - 1))
        elif isinstance(event, StreamEnded):
            self._ready.append(self._outcome(self._open.pop(number), event, stream.fault))

    def outcomes(self) -> Iterator[Prediction | Rejected]:
        """Those that are ready, once."""
        while self._ready:
            yield self._ready.popleft()

    def _outcome(self, book: _Book, end: StreamEnded, fault: Exception | None) -> Prediction | Rejected:
        if fault is not None:
            return Rejected(book.example.key, str(fault))
        if end.reason == "capacity":
            return Rejected(
                book.example.key,
                f"it does not fit into the {self.max_slots} slots that a row may have with {self.rows} rows; "
                "give fewer rows, or smaller frames (max_pixels)",
            )
        ended = [not event.cut_off for event, _ in book.asked] + [end.reason == "end_token"]
        spoken = book.answer(0)
        return Prediction(
            key=book.example.key,
            reference=book.example.caption,
            ended=ended[0],
            frames=len(book.seen),
            duration_s=book.duration_s,
            after_frame=tuple(event.after_frame for event in spoken),
            # Where there is nothing to watch, the answer may begin at once.
            video_s=tuple(book.seen[event.after_frame].video_s if book.seen else 0.0 for event in spoken),
            frame_wall_s=tuple(round(book.seen[event.after_frame].wall_s, 4) if book.seen else 0.0 for event in spoken),
            mode=str(self.mode),
            rows=self.rows,
            later=tuple(
                self._later(book, number, reference, ended[number])
                for number, reference in enumerate(_references(book.example), 1)
            ),
            **_said(spoken),
        )

    def _later(self, book: _Book, number: int, reference: str, ended: bool) -> LaterAnswer:
        """The answer to a question behind the first."""
        spoken, of_video = book.answer(number), book.example.questions
        in_video = number <= len(of_video)
        question = of_video[number - 1].text if in_video else book.example.later[number - 1 - len(of_video)][0]
        return LaterAnswer(
            question or self.question,
            reference,
            ended=ended,
            after_frame=tuple(event.after_frame for event in spoken) if in_video else (),
            asked_after=book.asked[number - 1][1] if in_video else None,
            **_said(spoken),
        )


def _references(example: VideoExample) -> list[str]:
    """The answers to all questions behind the first."""
    in_video = [join_texts([sentence.text for sentence in one.sentences])[0] for one in example.questions]
    return in_video + [answer for _, answer in example.later]


def _said(spoken: Sequence[TokenSpoken]) -> Json:
    """What is kept of the words of any answer."""
    words = tuple(event.text for event in spoken)
    return {
        "text": "".join(words),
        "token_ids": tuple(event.token_id for event in spoken),
        "words": words,
        "wall_s": tuple(round(event.wall_s, 4) for event in spoken),
    }


def later_predictions(predictions: Iterable[Prediction]) -> list[Prediction]:
    """The answers of later turns as predictions of their own, by the key `KEY#TURN`; they tell nothing of the time."""
    return [
        replace(
            of_video,
            key=f"{of_video.key}#{turn}",
            reference=later.reference,
            text=later.text,
            ended=later.ended,
            token_ids=later.token_ids,
            words=later.words,
            wall_s=later.wall_s,
            after_frame=(),
            video_s=(),
            frame_wall_s=(),
            later=(),
        )
        for of_video in predictions
        for turn, later in enumerate((one for one in of_video.later if one.asked_after is None), start=1)
    ]


def _first_slots(
    prompt: int, examples: Sequence[VideoExample], special: SpecialTokens, settings: StreamSettings, frame_units: int
) -> tuple[int, int]:
    """Slots that hold the longest of the videos by the durations that the data set claims, and those for words.

    Where a memory bounds them, they hold any video.
    """
    if (room := bounded_room(settings, frame_units, CHUNK_SIZES[-1] + TILE, prompt)) is not None:
        words = room[0] or settings.step
        return words + room[1], words
    longest_s = max(example.duration_s or 0.0 for example in examples)
    frames = 1 + int(min(FIRST_SLOTS, max(0.0, longest_s / settings.second_per_grid_t)))
    sources = prompt + frames * frame_units + len(special.trailer)
    words = len(special.prefix) + frames * settings.words_an_item + settings.max_tail
    sources, words = (min(FIRST_SLOTS // 2, -(-count // 128) * 128) for count in (sources, words))
    return sources + words, words


def _read_media(
    example: VideoExample, read: Callable[[VideoExample], Iterable[Frame]]
) -> list[tuple[Picture | Video, deque[Frame]]]:
    """Images and videos of an example with their frames; the times of later videos follow those of earlier ones."""
    shown, began_s = list[tuple[Picture | Video, deque[Frame]]](), 0.0
    for item in example.media if example.video is None else (example.video,):
        # Named as a video, so that whatever reads the videos of examples reads these.
        frames = deque(read(replace(example, video=item, media=())))
        if began_s:
            frames = deque(replace(frame, video_s=began_s + frame.video_s) for frame in frames)
        if not isinstance(item, Picture):
            began_s = frames[-1].video_s
        shown.append((item, frames))
    return shown


def _parts(question: str, media: Iterator[tuple[Picture | Video, deque[Frame]]]) -> list[str | Frame]:
    """A question as the engine takes it: its texts, its images, next of the media, and a tag for each video."""
    parts = list[str | Frame]()
    for piece in re.split(f"({IMAGE_TAG}|{VIDEO_TAG})", question.strip()):
        frames = next(media)[1] if piece in (IMAGE_TAG, VIDEO_TAG) else deque[Frame]()
        parts += [frames[0]] if piece == IMAGE_TAG else [piece] if piece else []
    return parts


def _hand_out(frames: deque[Frame]) -> Iterator[Frame]:
    """Frames one by one; what has been handed out is not kept."""
    while frames:
        yield frames.popleft()
