"""What has come of one stream and has not been laid out: frames and questions, in order. No device."""

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

from swjax.inference.frames import Frame, merge_frames
from swjax.inference.memory import bounds_of, positions_of
from swjax.inference.parts import Arrival, Asked, Tally
from swjax.inference.prompt import Piece
from swjax.inference.settings import Mode, StreamSettings, WhenBehind


class Arrivals:
    """The frames and questions of one stream that wait, and the questions after the video, which are turns.

    Args:
        settings: how the stream is spoken about.
        mode, when_behind, on_demand: as for `swjax.inference.scheduler.Scheduler`.
        prompt: tokens of the prompt.
        videos: how many the question is about.
        tally: of the stream; frames that were late are counted there.

    Attributes:
        turns: questions after the video, which have not been laid out.
        asked: questions that have been asked beside the first.
        finished: whether no frame follows those that have arrived.
    """

    def __init__(
        self,
        settings: StreamSettings,
        mode: Mode,
        *,
        when_behind: WhenBehind | None,
        on_demand: bool,
        prompt: int,
        videos: int,
        tally: Tally,
    ) -> None:
        self._settings, self._mode, self._when_behind, self._on_demand = settings, mode, when_behind, on_demand
        self._prompt, self._videos_left, self._tally = prompt, videos, tally
        self._items: deque[Arrival | Asked] = deque()
        self._next: Arrival | None = None  # is looked at before it is laid out
        self._arrived = 0
        self._question_tokens: dict[int, int] = {}
        self.turns: deque[Asked] = deque()
        self.asked, self.finished = 0, not videos

    def arrive(self, frame: Frame, now: float, *, last: bool) -> None:
        """A frame has come.

        Args:
            frame: the next of the video.
            now: seconds, by the clock of the engine.
            last: whether it ends the video.
        """
        if self.finished:
            raise ValueError("the video has been finished; a new stream is needed for more frames")
        self._check_counts()
        self._check_fits(frame.units, "frame")
        newest = self._items[-1] if self._items else None
        if self._when_behind == "merge" and isinstance(newest, Arrival) and newest.frame.grid_hw != frame.grid_hw:
            before = newest.frame.grid_hw
            raise ValueError(f"frames that may be merged must have one size, got {before} and then {frame.grid_hw}")
        self._items.append(Arrival(frame, self._arrived, now, last))
        self._arrived += 1
        self._videos_left -= last
        self.finished = last and not self._videos_left

    def ask(self, pieces: tuple[Piece, ...], now: float, *, interrupts: bool, is_answering: bool) -> int:
        """A question has come behind the frames that have arrived; returns its number.

        Behind the last frame it opens a turn of its own, when the answers before it have ended or been broken off.

        Args:
            pieces: texts and images of the question.
            now: seconds, by the clock of the engine.
            interrupts: whether it breaks off the answer under way.
            is_answering: whether there is one.
        """
        if self.finished:
            if self._on_demand and is_answering and not interrupts:
                raise ValueError("an answer is under way; speak until it has ended, or interrupt it")
            self.asked += 1
            self.turns.append(Asked(pieces, self.asked, now, interrupts))
            return self.asked
        if not self._arrived:
            raise ValueError("no frame has come yet; open the stream with this question, or ask after a frame")
        self._check_counts()
        question = Asked(pieces, self.asked + 1, now, interrupts)
        self._check_fits(question.length, "question")
        if positions_of(self._settings.memory) in ("contiguous", "apart"):
            raise ValueError("questions between frames need a memory whose positions are kept, or set back together")
        self.asked += 1
        self._question_tokens[self.asked] = question.length
        self._items.append(question)
        return self.asked

    def _check_fits(self, tokens: int, what: str) -> None:
        """Refuse a frame or question that does not fit into what a bounded memory keeps, beside what must stay."""
        bounds = bounds_of(self._settings.memory, tokens, self._prompt)
        must_stay = self._prompt + sum(self._question_tokens.values())
        if bounds is not None and must_stay + tokens > bounds.kept:
            raise ValueError(
                f"the {what} has {tokens} tokens, and the memory keeps {bounds.kept}, of which the prompt and "
                f"questions that are not answered take {must_stay}; give it more sources, or make frames "
                "smaller (max_pixels)"
            )

    def _check_counts(self) -> None:
        """Refuse one frame or question too many for an explicit schedule."""
        counts, items = self._settings.counts, self._arrived + self.asked
        takes_all = self._mode is not Mode.OFFLINE and self._when_behind in (None, "delay") and not self._on_demand
        if counts is not None and takes_all and items > len(counts):
            self._settings.words_after(items - 1)  # what came before is not the last, and has no count

    def answered(self, question: int) -> None:
        """A question has been answered, and need not stay."""
        self._question_tokens.pop(question, None)

    def finish(self) -> None:
        """No frame follows."""
        if not self._arrived:
            raise ValueError("the video has no frames; hand over at least one before finish()")
        if self._videos_left > 1:
            raise ValueError(f"the question is about {self._videos_left - 1} more videos; hand over their frames")
        self.finished = True

    @property
    def backlog(self) -> int:
        """Frames that have arrived and are not laid out."""
        return sum(isinstance(one, Arrival) for one in self._items) + (self._next is not None)

    @property
    def waits(self) -> bool:
        """Whether a frame or question of the video has arrived and is not laid out."""
        return bool(self._next or self._items)

    @property
    def coming(self) -> Arrival | Asked | None:
        """What is laid out next, of the video or else of the turns after it."""
        coming = self._items or self.turns
        return self._next or (coming[0] if coming else None)

    @property
    def has_question(self) -> bool:
        """Whether a question waits."""
        return any(isinstance(one, Asked) for one in (*self._items, *self.turns))

    def to_encode(self) -> Iterator[Arrival]:
        """Frames whose features are needed soon, the next first."""
        if self._next is not None and self._next.cell is None:
            yield self._next
        # Where frames may be dropped or merged, which one is next is not known before its turn.
        if self._items and self._when_behind in (None, "delay") and self._mode is Mode.PARALLEL:
            first = self._items[0]
            if isinstance(first, Arrival) and first.cell is None:
                yield first

    def is_looked_at(self) -> bool:
        """Whether the next frame has been encoded and its tokens chosen, where some may be dropped."""
        if self._settings.looks_by is None:
            return True
        if self._next is None and self._items and isinstance(self._items[0], Arrival):
            self._next = cast(Arrival, self._take())
        return self._next is None or self._next.keep is not None

    def take(self) -> Arrival | Asked | None:
        """The next frame or question to lay out, if one has arrived."""
        taken = self._next or (self._take() if self._items else None)
        self._next = None
        return taken

    def _take(self) -> Arrival | Asked:
        """The next frame or question; in real time, what has fallen behind is dealt with."""
        frames = [*itertools.takewhile(lambda one: isinstance(one, Arrival), self._items)]
        if self._when_behind is not None and len(frames) > 1:
            if self._when_behind == "delay":
                self._tally.frames_delayed += 1
            else:
                earliest, newest, others = cast(Arrival, frames[0]), cast(Arrival, frames[-1]), len(frames) - 1
                for _ in frames:
                    self._items.popleft()
                if self._when_behind == "drop":
                    self._tally.frames_dropped += others
                    return newest
                self._tally.frames_merged += others
                return replace(earliest, frame=merge_frames(earliest.frame, newest.frame), last=newest.last)
        return self._items.popleft()
