"""The batched engine: many streams, each with its own clock, advanced together, each pass once over the weights.

Decoding a word is bound by reading the weights, perceiving a frame by arithmetic. So a pass computes the next word of
every stream and, beside it, a part of the frame that has arrived meanwhile: as large a part as makes the frame ready
when its turn comes. With two devices, one perceives and the other speaks, and what has been perceived is moved over
while words are spoken.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Int32

from swjax.inference.dropping.watcher import Watcher
from swjax.inference.events import EndReason, StreamEnded, StreamEvent
from swjax.inference.frames import Frame, check_frame
from swjax.inference.growth import Growth
from swjax.inference.lane import Lane
from swjax.inference.memory import KEEP_ALL, Memory
from swjax.inference.packing import RowTokens
from swjax.inference.parts import Share
from swjax.inference.place import row_shards
from swjax.inference.prompt import Question, images_of, open_stream
from swjax.inference.rehearsal import rehearse
from swjax.inference.room import padded_size
from swjax.inference.sampler import GREEDY, SamplingRows
from swjax.inference.scheduler import Scheduler
from swjax.inference.settings import USUAL_SETTINGS, Mode, StreamSettings, WhenBehind, check_when_behind
from swjax.inference.sizes import CHUNK_SIZES, Sizes
from swjax.inference.stream import Stream
from swjax.inference.track import Track
from swjax.inference.voice import UNDECIDED
from swjax.inference.weights import Model, Weights
from swjax.streaming.tokens import Tokenizer

Result = TypeVar("Result")


class BatchEngine:
    """A model that watches and speaks in up to `rows` streams at once.

        engine = BatchEngine(model, rows=8, frame_units=64)
        stream = engine.open(tokenizer, question="What happens?")
        engine.see(stream, frame)
        while engine.has_work:
            for stream, event in engine.step(): ...

    `swjax.inference.feed.run_streams` does this for whole videos.

    Args:
        model: the model, or `Weights` made of it, which several may share.
        rows: streams at a time.
        frame_units: largest number of merged patches of a frame.
        slots: slots of a row's cache at first.
        word_slots: how many of them are for words, in designs that store words and sources apart; by default half.
        max_slots: slots up to which rows are doubled when one of them is full; a stream that needs more is ended.
        chunk_sizes: tokens that a pass may hold beside one word, ascending; each is compiled once.
        placement: shardings of the perceiver and of the speaker, if they are to be on different devices, each with a
            copy of the weights: frames are perceived on the first, and words spoken on the second.
        grow_ahead: whether the passes of larger rows are compiled before a stream needs them, and not when it does.
        clock: seconds; events carry its time.

    Attributes:
        config: the model's.
        passes: passes over the weights that the speaker has run.
    """

    def __init__(
        self,
        model: Model | Weights,
        *,
        rows: int,
        frame_units: int,
        slots: int = 512,
        word_slots: int | None = None,
        max_slots: int = 65_536,
        chunk_sizes: Sequence[int] = CHUNK_SIZES,
        placement: tuple[jax.sharding.Sharding, jax.sharding.Sharding] | None = None,
        grow_ahead: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        if placement and isinstance(model, Weights):
            raise ValueError("an engine in two places needs a copy of the weights at each; give it the model itself")
        word_slots = slots // 2 if word_slots is None else word_slots
        at = [model] if isinstance(model, Weights) else [Weights(model, one) for one in placement or (None,)]
        if rows % (shards := row_shards(at[-1].where)):
            raise ValueError(f"{rows} rows are not divided by the mesh's data x fsdp = {shards}; make them a multiple")
        fewest = at[-1].fewest_tokens
        sizes = Sizes(rows, frame_units, slots, word_slots, max_slots, chunk_sizes, placement is not None, fewest)
        self.config, self._clock, self._sizes = model.config, clock, sizes

        def lane(weights: Weights, left: int) -> Lane:
            inbox_frames, right = sizes.inbox_frames(frame_units), slots - word_slots
            return Lane(weights, rows=rows, left=left, right=right, frame_units=frame_units, inbox_frames=inbox_frames)

        self._speaker = lane(at[-1], word_slots)
        self._perceiver = lane(at[0], 0) if placement else self._speaker
        self._growth = Growth(self._speaker, self._perceiver, max_slots=max_slots, ahead=grow_ahead)
        self._streams: list[Stream | None] = [None] * rows

    @property
    def passes(self) -> int:
        """Passes over the weights that the speaker has run."""
        return self._speaker.passes

    @property
    def free(self) -> int:
        """Streams that can be opened."""
        return self._streams.count(None)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return any(self._has_work(stream) or stream.fault for stream in self._open())

    def warm_up(self, grid_hw: tuple[int, int], memory: Memory = KEEP_ALL) -> None:
        """Compile all that streams need, while none is open, so that no word waits for it.

        Rows that are doubled later are compiled again, so give the engine the slots that it will need.

        Args:
            grid_hw: patch rows and columns of the frames that will come. Those of another number of patches are padded
                from now on, to the next larger one that has been warmed up or to the largest that the engine takes.
            memory: of the streams that will be opened; what it drops is dropped once for nothing.
        """
        if self._open():
            raise ValueError("the engine has open streams; warm it up before the first, or after the last of them")
        perceived, spoken = ([(size, speaks) for size in self._sizes.passes] for speaks in (False, True))
        if self._apart:
            self._perceiver.warm_up(grid_hw, perceived)
        self._speaker.warm_up(None if self._apart else grid_hw, [*perceived, *spoken])
        rehearse(memory, self._speaker, self._perceiver)
        if self._apart:
            # Questions are of any length, so pieces of all sizes up to the largest chunk.
            largest = max(padded_size(self._sizes.passes[-1]), padded_size(self._perceiver.frame_units))
            for size in (2**power for power in range(2, largest.bit_length())):
                if size <= min(self._perceiver.slots, self._speaker.slots):
                    self._speaker.put(0, 0, self._speaker.fetch(self._perceiver.take(0, 0, size)))

    def widen(self, frame_units: int) -> None:
        """Take larger frames from now on, which compiles the passes anew; does nothing if they are taken already.

        Args:
            frame_units: largest number of merged patches of a frame.

        Raises:
            ValueError: if a stream has frames whose features are still needed.
        """
        if frame_units <= self._perceiver.frame_units:
            return
        if any(stream.free_cells < self._perceiver.inbox_frames for stream in self._open()):
            raise ValueError("the engine has frames that wait; let it take them in (step) before larger ones come")
        for lane in self._lanes:
            lane.make_inbox(frame_units, self._sizes.inbox_frames(frame_units))
        for stream in self._open():
            stream.use_cells(self._perceiver.inbox_frames)

    def open(
        self,
        tokenizer: Tokenizer,
        *,
        question: Question,
        settings: StreamSettings = USUAL_SETTINGS,
        system: str | None = None,
        mode: Mode | None = None,
        when_behind: WhenBehind | None = None,
        on_demand: bool = False,
        watches_on: bool = False,
    ) -> Stream:
        """Begin a stream in a free row.

        Args:
            tokenizer: the model's tokenizer.
            question: what is asked about the video; or texts, images (`make_frame`) and `VIDEO_TAG` for each of its
                videos, whose frames follow one another, each ended by `last`.
            settings: how it is spoken about.
            system: the system prompt; by default that of the model's family.
            mode: what happens at a time; by default the quickest that the variant allows.
            when_behind: for frames that come by a clock: what becomes of those that cannot be taken in in time.
            on_demand: whether words are spoken when they are asked for (`speak`), not by the schedule of the settings.
            watches_on: whether the stream is watched until the video ends, for more questions (`ask`), when all is
                answered. One on demand is.

        Raises:
            ValueError: if no row is free, the variant does not allow the mode, or something else cannot be used.
        """
        if not self.free:
            raise ValueError(f"all {len(self._streams)} rows are taken; wait until a stream ends, or give more rows")
        chat = self.config.chat if system is None else replace(self.config.chat, system_prompt=system)
        special, opening = open_stream(tokenizer, question, settings, vocab_size=self.config.text.vocab_size, chat=chat)
        for image in images_of(question):
            self._units(image)
        check_when_behind(when_behind)
        mode = Mode.usual(settings.variant) if mode is None else Mode(mode)
        if self._apart and mode is not Mode.PARALLEL:
            raise ValueError(f"an engine whose perceiver and speaker are apart runs in mode parallel, not {mode}")
        row = self._streams.index(None)
        scheduler = Scheduler(
            Track(settings, special, tokens_per_second=self.config.vision.tokens_per_second),
            opening.prompt,
            gaps=opening.gaps,
            settings=settings,
            mode=mode,
            when_behind=when_behind,
            apart=self._apart,
            on_demand=on_demand,
            watches_on=watches_on,
        )
        stream = Stream(
            settings=settings,
            answer=[],
            ended=None,
            tally=scheduler.tally,
            row=row,
            opened_s=self._clock(),
            _scheduler=scheduler,
            _tokenizer=tokenizer,
            _special=special,
            _stops=frozenset({special.im_end, *settings.stop_tokens}),
            _origin=self._speaker.left if settings.design.grouped else 0,
            _cells=list(range(self._perceiver.inbox_frames)),
            _watcher=None if settings.looks_by is None else Watcher(settings.looks_by),
        )
        self._streams[row] = stream
        for lane in self._lanes:
            lane.forget(row)
        return stream

    def see(self, stream: Stream, frame: Frame, *, last: bool = False) -> None:
        """Hand a frame over; `step` takes it in when its turn comes.

        Args:
            stream: the stream.
            frame: its next frame.
            last: whether it ends the video.

        Raises:
            ValueError: if the stream has ended or its video has, the frame cannot be used, or it is one too many for an
                explicit schedule. The stream is left as it was.
        """
        self._check_watching(stream)
        self._growth.fit(stream, self._units(frame), self._sizes.passes[-1], self._open())
        stream.arrive(frame, self._clock(), last=last)

    def _units(self, frame: Frame) -> int:
        """Tokens of a frame or an image that the engine takes."""
        check_frame(frame, self.config.vision)
        if frame.units > self._perceiver.frame_units:
            raise ValueError(
                f"the frame has {frame.units} tokens, the engine takes {self._perceiver.frame_units} at most; make it "
                "smaller (max_pixels) or build the engine with larger frame_units"
            )
        return frame.units

    def ask(self, stream: Stream, question: Question, *, interrupt: bool = False) -> int:
        """Ask another question about a video, behind the frames that have been handed over.

        It is a source like a frame: words that come later see it. Its answer follows the one that is under way. Behind
        the last frame it waits until the answers before it have ended, or reached their limit, and opens a new turn.

        Args:
            stream: the stream.
            question: text; behind the last frame also texts and images (`make_frame`).
            interrupt: whether the answer under way is broken off, and this one begins; by a rule of speaking it always
                is, once what has been begun is said.

        Returns:
            Its number: 1 for the first; `TokenSpoken.question` says which one a word answers.

        Raises:
            ValueError: if the stream has ended, the video has not begun, the question cannot be used, or it comes after
                the video and words are spoken on demand, while an answer that is not interrupted is under way.
        """
        self._check_watching(stream)
        for image in images_of(question):
            self._units(image)
        return stream.ask(question, self._clock(), config=self.config, interrupts=interrupt)

    def finish(self, stream: Stream) -> None:
        """Say that no frame follows; after the end it does nothing.

        Raises:
            ValueError: if there was no frame.
        """
        if stream.ended is None:
            self._check_own(stream)
            stream.finish()

    def speak(self, stream: Stream, words: int) -> None:
        """Ask for words of a stream that was opened with `on_demand`; the steps that follow speak them.

        Args:
            stream: the stream.
            words: how many, in the place of those that it was asked for before and has not spoken.

        Raises:
            ValueError: if it speaks by its schedule, or has seen too little to speak.
        """
        if stream.ended is None and not stream.answered:
            self._check_own(stream)
            stream.demand(words)

    def close(self, stream: Stream) -> None:
        """Give a stream up, and its row to the next one."""
        if stream.ended is None:
            self._check_own(stream)
            self._end(stream, "closed")

    def step(self) -> list[tuple[Stream, StreamEvent]]:
        """Advance all streams by one pass; returns what has happened in them, and nothing if there was no work.

        An error of one stream ends it, with the reason `fault`; the others are advanced as if it were not there.
        """
        self._compact(self._open())
        for stream in self._open():
            self._attempt(stream, stream.verify, self._speaker)
        working = [stream for stream in self._open() if self._has_work(stream)]
        # Whose larger rows are being compiled waits for them alone, unless nobody else has work.
        working = [stream for stream in working if self._attempt(stream, self._growth.is_ready, stream)] or working
        events = self._pass(working) if working else []
        return events + [(stream, self._end(stream, "fault")) for stream in self._open() if stream.fault]

    def _pass(self, working: list[Stream]) -> list[tuple[Stream, StreamEvent]]:
        self._encode_ahead()
        room = self._sizes.pass_for(max(self._attempt(stream, stream.need) or 0 for stream in working))
        events: list[tuple[Stream, StreamEvent]] = []
        shares: dict[Stream, Share] = {}
        for stream in working:
            share = self._attempt(stream, stream.plan, room)
            has_room = share is not None and self._attempt(stream, self._growth.make_room, stream, share, self._open())
            if share is not None and has_room:
                shares[stream] = share
            elif not stream.fault:
                events.append((stream, self._end(stream, "capacity")))
        chosen = self._advance(shares)
        self._compact(shares)
        self._encode_ahead()  # for the next passes, while this one runs
        tokens = np.asarray(chosen) if chosen is not None else None
        now = self._clock()
        for stream, share in shares.items():
            events += [(stream, event) for event in self._attempt(stream, self._tell, stream, share, tokens, now) or ()]
        return events

    def _attempt(self, stream: Stream, call: Callable[..., Result], *args: object) -> Result | None:
        """Call what concerns one stream alone. What it raises is that stream's fault, which the step ends it for."""
        if stream.fault is None:
            try:
                return call(*args)
            except Exception as error:
                stream.fault = error
        return None

    def _check_watching(self, stream: Stream) -> None:
        if stream.ended is not None:
            raise ValueError(f"the stream has ended ({stream.ended}); open another one for more of the video")
        self._check_own(stream)

    def _check_own(self, stream: Stream) -> None:
        if self._streams[stream.row] is not stream:
            raise ValueError("the stream is another engine's; hand it to the engine that opened it")

    @property
    def _lanes(self) -> tuple[Lane, ...]:
        return (self._speaker, self._perceiver) if self._apart else (self._speaker,)

    @property
    def _apart(self) -> bool:
        return self._perceiver is not self._speaker

    def _open(self) -> list[Stream]:
        return [stream for stream in self._streams if stream is not None]

    def _has_work(self, stream: Stream) -> bool:
        return bool(self._attempt(stream, lambda: stream.has_work))

    def _encode_ahead(self) -> None:
        for stream in self._open():
            self._attempt(stream, stream.encode_ahead, self._perceiver)

    def _advance(self, shares: dict[Stream, Share]) -> Int32[jax.Array, "B"] | None:
        """Run the pass, or one on each lane; returns the chosen tokens of all rows, None if nobody speaks.

        Takes out of the shares those whose tokens cannot be put together.
        """
        sources: dict[int, RowTokens] = {}
        targets: dict[int, RowTokens] = {}
        choices = [(GREEDY, 0, UNDECIDED)] * len(self._streams)
        units = self._perceiver.frame_units
        for stream, share in tuple(shares.items()):
            made = self._attempt(stream, partial(stream.row_tokens, share, apart=self._apart, frame_units=units))
            if made is None:
                del shares[stream]
                continue
            for rows, tokens in zip((sources, targets), made, strict=True):
                if tokens is not None:
                    rows[stream.row] = tokens
            choices[stream.row] = stream.choice
        sampling = SamplingRows.of(*zip(*choices, strict=True))
        speaking = [stream.row for stream, share in shares.items() if share.speaks]
        longest = [max((len(row.features) for row in rows.values()), default=0) for rows in (sources, targets)]
        if sources:
            self._perceiver.advance(sources, self._sizes.pass_for(longest[0]), [], sampling)
        if self._apart:
            for stream, share in shares.items():
                stream.hand_over(share, self._perceiver, self._speaker)
        if not targets:
            return None
        chosen = self._speaker.advance(targets, self._sizes.pass_for(longest[1]), speaking, sampling)
        return chosen if speaking else None

    def _compact(self, streams: Iterable[Stream]) -> None:
        for stream in streams:
            self._attempt(stream, stream.compact, self._speaker, self._perceiver)

    def _tell(self, stream: Stream, share: Share, tokens: np.ndarray | None, now: float) -> list[StreamEvent]:
        events = stream.tell(share, tokens, now)
        if stream.ended is not None:
            self._streams[stream.row] = None
        return events

    def _end(self, stream: Stream, reason: EndReason) -> StreamEnded:
        self._streams[stream.row] = None
        return stream.end(reason, self._clock())
