"""The scheduler of one stream: what it has to perceive and to say, and what of it the next pass takes. No device.

Tokens that have been laid out wait in a queue of groups (a prompt, a frame, words). A pass takes some of them from the
front, and the word that was spoken last once all that it may see is written or in the same pass.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from jaxtyping import Int32

from swjax.inference.frames import Frame, merge_frames
from swjax.inference.memory import KEEP_ALL, Book, Moves, StoredKeys, bounds_of
from swjax.inference.memory.host import HostBlocks
from swjax.inference.numbers import whole
from swjax.inference.parts import Arrival, Asked, Group, Part, Share, Tally
from swjax.inference.prompt import Piece
from swjax.inference.settings import Mode, StreamSettings, WhenBehind
from swjax.inference.track import Tokens, Track
from swjax.inference.verifying import LastSaid, Refit, Rerun
from swjax.inference.voice import UNDECIDED, Deciding, Voice
from swjax.streaming import Storage


class Scheduler:
    """One stream's queue, schedule and tally.

    Args:
        track: the stream's book, empty.
        prompt: token ids of the sources before the first frame, or pieces with images among them.
        gaps: pieces that follow each video; by default the trailer of one. Without any, the prompt is answered at once.
        settings: how it is spoken about.
        mode: what happens at a time.
        merge_size: patches on a side of the square that becomes one token.
        when_behind: what becomes of frames that cannot be taken in by the time that the next one arrives; None where
            frames do not come by a clock.
        apart: whether sources and words are computed on different devices.
        on_demand: whether words are spoken when they are asked for (`demand`), not by the schedule.
        watches_on: whether a stream that speaks by its schedule watches until the video ends, for more questions, when
            all is answered.

    Attributes:
        settings, on_demand: as above.
        prompt: tokens of the prompt.
        spoken: words that have been spoken.
        words_left: words that may be spoken before the next frame.
        after_frame: number of the newest frame that words can see; -1 before the first.
        answering: number of the question that is being answered; None while all have been.
        tally: what it has cost.
    """

    def __init__(
        self,
        track: Track,
        prompt: np.ndarray | Sequence[Piece],
        *,
        gaps: Sequence[Sequence[Piece]] | None = None,
        settings: StreamSettings,
        mode: Mode,
        merge_size: int,
        when_behind: WhenBehind | None,
        apart: bool,
        on_demand: bool = False,
        watches_on: bool = False,
    ):
        mode.check(settings.variant)
        if mode is Mode.RECOMPUTE and settings.verifies:
            raise ValueError(
                f"mode {mode} runs all again at each frame, and verify runs again what was said; choose one"
            )
        if mode is Mode.RECOMPUTE and (settings.memory != KEEP_ALL or settings.looks_by is not None):
            raise ValueError(
                f"mode {mode} runs all again at each frame, so nothing may be dropped; use memory keep_all, and "
                "no rule of dropping"
            )
        self._track, self.settings, self._design, self._mode = track, settings, settings.design, mode
        self._merge_size, self._when_behind, self._apart = merge_size, when_behind, apart
        self.on_demand, self._watches_on = on_demand, watches_on
        self._full = self._spoke = self._asks = False
        self._unasked_words = 0
        self._queue: deque[Group] = deque()
        self._lay_pieces([prompt] if isinstance(prompt, np.ndarray) else prompt)
        self.prompt, self._question_tokens = sum(group.left for group in self._queue), dict[int, int]()
        self._gaps = deque([None] if gaps is None else gaps)
        self._videos_left = len(self._gaps)
        self._log: list[Group] = []
        self._arrivals: deque[Arrival | Asked] = deque()
        self._turns: deque[Asked] = deque()
        self._next: Arrival | None = None
        self._ahead: Arrival | Asked | None = None
        self._arrived = self._asked = self._laid = 0
        self._open: deque[int] = deque()
        self.answering: int | None = 0
        self._closing = self._finished = not self._gaps
        self._closed = False
        self.spoken, self.words_left, self.after_frame = 0, 0, -1
        self.tally = Tally()
        self._fed: Tokens | None = None
        self._last_said = LastSaid() if settings.verifies else None
        self._unverified = False
        self._voice = None
        if settings.speaking_rule is not None and self._gaps:
            self._voice = Voice(settings.speaking_rule, settings.decisions, self._pause)

    def _pause(self) -> None:
        """What was begun is said; after the video the model says whether all is."""
        if self._last_said is not None and self._voice is not None and not self._voice.in_utterance:
            self._last_said.end()
        self.words_left = self.words_left if self._closed else 0

    @property
    def may_speak(self) -> bool:
        """Whether a rule of speaking, if there is one, allows a word before the next frame, or up to the end."""
        return self._voice is None or self._voice.may_speak or (self._closed and self._voice.has_begun)

    @property
    def deciding(self) -> Deciding:
        """How the next token may decide about silence."""
        return UNDECIDED if self._voice is None else self._voice.deciding

    def arrive(self, frame: Frame, now: float, *, last: bool) -> None:
        """A frame has come."""
        if self._finished:
            raise ValueError("the video has been finished; a new stream is needed for more frames")
        self._check_counts()
        self._check_fits(len(frame.patches) // self._merge_size**2, "frame")
        newest = self._arrivals[-1] if self._arrivals else None
        if self._when_behind == "merge" and isinstance(newest, Arrival) and newest.frame.grid_hw != frame.grid_hw:
            before = newest.frame.grid_hw
            raise ValueError(f"frames that may be merged must have one size, got {before} and then {frame.grid_hw}")
        self._arrivals.append(Arrival(frame, self._arrived, now, last))
        self._arrived += 1
        self._videos_left -= last
        self._finished = last and not self._videos_left

    def ask(self, pieces: tuple[Piece, ...], now: float, *, interrupts: bool) -> int:
        """A question has come behind the frames that have arrived; returns its number.

        Behind the last frame it opens a turn of its own, when the answers before it have ended or been broken off.
        """
        if self._finished:
            if self.on_demand and self.answering is not None and not interrupts:
                raise ValueError("an answer is under way; speak until it has ended, or interrupt it")
            self._asked += 1
            self._turns.append(Asked(pieces, self._asked, now, interrupts))
            return self._asked
        if not self._arrived:
            raise ValueError("no frame has come yet; open the stream with this question, or ask after a frame")
        self._check_counts()
        self._check_fits(self._length(pieces), "question")
        if getattr(self.settings.memory, "positions", "kept") in ("contiguous", "apart"):
            raise ValueError("questions between frames need a memory whose positions are kept, or set back together")
        self._asked += 1
        self._question_tokens[self._asked] = self._length(pieces)
        self._arrivals.append(Asked(pieces, self._asked, now, interrupts))
        return self._asked

    def _length(self, pieces: Sequence[Piece]) -> int:
        """Tokens of texts and images."""
        sizes = (len(one.patches) // self._merge_size**2 if isinstance(one, Frame) else len(one) for one in pieces)
        return sum(sizes)

    def _check_fits(self, tokens: int, what: str) -> None:
        """Refuse a frame or question that does not fit into what a bounded memory keeps, beside what must stay."""
        bounds = bounds_of(self.settings.memory, tokens, self.prompt)
        must_stay = self.prompt + sum(self._question_tokens.values())
        if bounds is not None and must_stay + tokens > bounds.kept:
            raise ValueError(
                f"the {what} has {tokens} tokens, and the memory keeps {bounds.kept}, of which the prompt and "
                f"questions that are not answered take {must_stay}; give it more sources, or make frames "
                "smaller (max_pixels)"
            )

    def _check_counts(self) -> None:
        """Refuse one frame or question too many for an explicit schedule."""
        counts, items = self.settings.counts, self._arrived + self._asked
        takes_all = self._mode is not Mode.OFFLINE and self._when_behind in (None, "delay") and not self.on_demand
        if counts is not None and takes_all and items > len(counts):
            self.settings.words_after(items - 1)  # what came before is not the last, and has no count

    def finish(self) -> None:
        """No frame follows."""
        if not self._arrived:
            raise ValueError("the video has no frames; hand over at least one before finish()")
        if self._videos_left > 1:
            raise ValueError(f"the question is about {self._videos_left - 1} more videos; hand over their frames")
        self._finished = True

    def demand(self, words: int) -> None:
        """So many words are wanted now.

        Raises:
            ValueError: if the stream does not speak on demand, or cannot speak yet.
        """
        if not self.on_demand:
            raise ValueError("the stream speaks by its schedule; open one with on_demand to ask for words")
        if self.after_frame < 0 and not self._closed:
            raise ValueError("nothing has been seen yet; see() a frame before speak()")
        if not self._design.speaks_while_watching and not self._closed:
            raise ValueError(f"variant {self.settings.variant} speaks after the video; call finish() first")
        if self.answering is None:
            raise ValueError("nothing is asked that is not answered; ask(), and step() until the question is taken in")
        self.words_left = whole("words", words) if self.may_speak else 0

    @property
    def finished(self) -> bool:
        """Whether no frame follows those that have arrived."""
        return self._finished

    @property
    def backlog(self) -> int:
        """Frames that have arrived and are not laid out."""
        return sum(isinstance(one, Arrival) for one in self._arrivals) + (self._next is not None)

    @property
    def ends(self) -> tuple[int, int]:
        """The first slot, and the one behind the last, that the stream needs soon."""
        lowest, highest = self._track.ends
        coming = self._arrivals or self._turns
        match self._next or (coming[0] if coming else None):
            case Arrival(frame=frame):
                highest += len(frame.patches) // self._merge_size**2
            case Asked(pieces=pieces):
                highest += self._length(pieces)
        return lowest - 1, highest

    @property
    def said_all(self) -> bool:
        """Whether the limit on words after the last frame is reached, and no turn follows."""
        left = self.words_left or self._turns or self._hidden or self._unverified
        return self._closed and not left and not self.on_demand

    @property
    def answered(self) -> bool:
        """Whether all that was asked is answered."""
        asked = (isinstance(one, Asked) for one in (*self._arrivals, *self._turns, self._ahead))
        return self.answering is None and not any(asked)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be said."""
        return self.answered and not self.on_demand and (self._closed or not self._watches_on)

    def to_encode(self) -> Iterator[Arrival]:
        """Frames whose features are needed, the next first; one that has only arrived is encoded ahead of its turn."""
        for group in self._queue:
            if group.arrival is not None and group.arrival.cell is None:
                yield group.arrival
        if self._next is not None and self._next.cell is None:
            yield self._next
        # Where frames may be dropped or merged, which one is next is not known before its turn.
        if self._arrivals and self._when_behind in (None, "delay") and self._mode is Mode.PARALLEL:
            first = self._arrivals[0]
            if isinstance(first, Arrival) and first.cell is None:
                yield first

    @property
    def _may_lay(self) -> bool:
        """Whether something may be perceived now, once a full memory has dropped what it does not keep."""
        if self._turn_is_due:
            return True
        if self._ahead is not None or self._closing or self._unverified:
            return False
        # One thing at a time: the next frame waits until the words before it are spoken.
        if self._mode is not Mode.PARALLEL and self.words_left:
            return False
        return bool(self._next or self._arrivals or (self._finished and not self.words_left and self._laid))

    def _is_looked_at(self) -> bool:
        """Whether the next frame has been encoded and its tokens chosen, where some may be dropped."""
        if self.settings.looks_by is None:
            return True
        if self._next is None and self._arrivals and isinstance(self._arrivals[0], Arrival):
            self._next = cast(Arrival, self._next_arrival())
        return self._next is None or self._next.keep is not None

    def _drop_ratio(self, arrival: Arrival) -> float | None:
        """Share of a frame's tokens that say nothing new, where it has been looked at."""
        if arrival.keep is None:
            return None
        return 1 - float(np.asarray(arrival.keep)[: len(arrival.frame.patches) // self._merge_size**2].mean())

    def _places(self, arrival: Arrival, units: int) -> Int32[np.ndarray, "n"]:
        """Places of a frame's tokens that become slots."""
        if arrival.keep is None or self.settings.drop is None:
            return np.arange(units, dtype=np.int32)
        places = np.flatnonzero(np.asarray(arrival.keep)[:units]).astype(np.int32)
        # The next word follows from the last token that is stored, so in order of arrival there must be one.
        return places if len(places) or self._design.grouped else np.array([units - 1], np.int32)

    def lay(self) -> None:
        """Lay out what may be perceived now."""
        if self._full or not self._may_lay:
            return
        if self._turn_is_due:
            self._lay_turn()
            return
        if not self._is_looked_at():
            return
        # What closes the video belongs to its last frame, so it comes before the prefix where nothing has been said.
        if (self._next or self._arrivals or self.spoken) and (before := self._track.before_frame()) is not None:
            self._queue.append(Group(before, is_target=True))
        arrival = self._next or (self._next_arrival() if self._arrivals else None)
        self._next = None
        if self._mode is Mode.RECOMPUTE and self._laid:
            self._start_again()
        if arrival is not None:
            self._ahead = arrival
            self._laid += 1
        if isinstance(arrival, Asked):
            (text,) = cast(tuple[np.ndarray], arrival.pieces)
            self._queue.append(Group(self._track.text(text, is_item=True)))
        if isinstance(arrival, Arrival):
            rows, columns = (size // self._merge_size for size in arrival.frame.grid_hw)
            arrival.places = self._places(arrival, rows * columns)
            tokens = self._track.frame(rows, columns, arrival.number, arrival.places)
            self.tally.tokens_dropped += rows * columns - len(arrival.places)
            if len(arrival.places):
                self._queue.append(Group(tokens, arrival=arrival))
        if arrival is None or (isinstance(arrival, Arrival) and arrival.last):
            gap = self._gaps.popleft()
            if gap is None:
                self._queue.append(Group(self._track.trailer()))
            else:
                self._lay_pieces(gap)
            self._track.begin_video()
            self._closing = not self._gaps

    def _lay_pieces(self, pieces: Sequence[Piece]) -> None:
        """Lay out texts and images of a question."""
        for piece in pieces:
            if isinstance(piece, Frame):
                rows, columns = (size // self._merge_size for size in piece.grid_hw)
                every = np.arange(rows * columns, dtype=np.int32)
                image = Arrival(piece, -1, 0.0, False, places=every)
                self._queue.append(Group(self._track.image(rows, columns), arrival=image))
            else:
                self._queue.append(Group(self._track.text(piece)))

    @property
    def _turn_is_due(self) -> bool:
        if not self._turns or not self._closed or self._hidden or self._unverified:
            return False
        said = self.answering is None or (not self.words_left and not self.on_demand)
        return said or self._turns[0].interrupts

    def _lay_turn(self) -> None:
        """Lay out the question of a later turn; an answer that has not ended by itself is ended, as in training."""
        cuts_off = self.answering is not None
        if cuts_off:
            self._queue += [Group(tokens, is_target=True) for tokens in (self._track.feed(), self._track.end_answer())]
            self.answering, self.words_left = None, 0
            self._open.clear()
        self._queue.append(Group(self._track.feed(), is_target=True))
        self._ahead = replace(self._turns.popleft(), cuts_off=cuts_off)
        opens, *pieces = self._ahead.pieces
        self._queue.append(Group(self._track.turn(cast(np.ndarray, opens))))
        self._lay_pieces(pieces)

    def need(self) -> int:
        """Tokens that the next pass should have room for."""
        waiting = sum(group.left for group in self._queue)
        feed = len(self._track.waiting)
        if self._mode is Mode.PARALLEL and not self._apart:
            # Spread over the words that are spoken before the frame's turn comes.
            words = self.words_left if self._voice is None else min(self.words_left, self.settings.wait_k)
            return math.ceil(waiting / max(1, words)) + feed
        return waiting + feed if self._apart else waiting or feed

    @property
    def has_work(self) -> bool:
        """Whether a pass could advance the stream now."""
        self.lay()
        return bool(self._unwritten or self.words_left or self._hidden or self._may_lay or self._unverified)

    @property
    def _unwritten(self) -> int:
        """Tokens that have been laid out and may be written now.

        On demand and in arrival order the last source waits, as a word does, until its successor is wanted or something
        follows: the next word is chosen in the pass in which it is written.
        """
        left = sum(group.left for group in self._queue)
        waits = self.on_demand and self._design.storage is Storage.ARRIVAL and not self.words_left
        # What a full memory keeps is moved together before anything else is laid out.
        more = self._full and (self._arrivals or (self._finished and not self._closing))
        return left - 1 if left and waits and not self._track.waiting and not more else left

    @property
    def _hidden(self) -> bool:
        """Whether something has been laid out that words do not see yet."""
        return self._ahead is not None or (self._closing and not self._closed)

    def plan(self, room: int) -> Share:
        """Take what the next pass computes of this stream, at most `room` tokens."""
        share = Share()
        together = self._mode is Mode.PARALLEL
        reserved = len(self._track.waiting) if together and self.words_left else 0
        while True:
            self._take(share, room - reserved)
            if self._unwritten or self.words_left or not self._hidden:
                break
            self._reveal(share)
            # What is run again has the slots of what was run before, and a pass writes each slot once.
            if self.words_left or self._mode is Mode.RECOMPUTE or self._full or self._unverified:
                break
            self.lay()
        self._speak(share, room, alone=not together)
        return share

    def spoke(self, token: int) -> None:
        """A word has been chosen."""
        self._track.say(token)
        self.spoken += 1
        self.words_left -= 1
        self._unasked_words += 1
        if self._unasked_words > self.settings.step:  # of a stream on demand
            self._full, self._unasked_words = self._asks or self._track.is_full, 0
        if self._last_said is not None and self._voice is not None:
            assert self._fed is not None, "a word is chosen behind one that has been written"
            self._last_said.note(self._fed, token, begins=not self._voice.in_utterance)
        if self._voice is not None:
            self._voice.spoke(token)

    def end_answer(self, token: int) -> None:
        """The token that ends an answer has been chosen; the next question has its turn."""
        self._queue.append(Group(self._track.end_answer(token), is_target=True))
        self.spoken += 1
        self._question_tokens.pop(self.answering or 0, None)
        self.answering = None
        if self._open:
            self.words_left -= 1
            self._begin_answer()
        else:
            self.words_left = 0

    def _begin_answer(self) -> None:
        self.answering = self._open.popleft()
        # What the question asks for is fetched before its first word.
        self._asks = getattr(self.settings.memory, "fetches", False)
        self._full = self._full or self._asks
        self._queue.append(Group(self._track.begin_answer(), is_target=True))

    def _speak(self, share: Share, room: int, *, alone: bool) -> None:
        """Add the waiting word, where one may be spoken in this pass, and with it more of the next frame."""
        waiting = len(self._track.waiting)
        if not self.words_left or len(share) + waiting > room or any(group.is_target for group in self._queue):
            return
        if self._asks:
            return
        if waiting and alone and (self._queue or share.parts):
            return  # one thing at a time
        words = None
        if waiting:
            self._fed = tokens = self._track.feed()
            words = Group(tokens, is_target=True, taken=waiting)
        if not alone and not (self._apart and share.parts):
            self.lay()
            self._take(share, room - waiting)
        if words is not None:
            share.parts.append(Part(words, 0, waiting))
            self._note(words)
        share.speaks = self._spoke = True

    def _take(self, share: Share, room: int) -> None:
        while (unwritten := self._unwritten) and len(share) < room:
            group = self._queue[0]
            if group.arrival is not None and group.arrival.cell is None:
                return
            first, group.taken = group.taken, group.taken + min(room - len(share), group.left, unwritten)
            share.parts.append(Part(group, first, group.taken))
            if not group.left:
                self._note(self._queue.popleft())

    def _note(self, group: Group) -> None:
        if self._mode is Mode.RECOMPUTE:
            self._log.append(group)

    def _start_again(self) -> None:
        """Queue all that has been written once more; frames are encoded again."""
        for group in reversed(self._log):
            arrival = None if group.arrival is None else replace(group.arrival, cell=None)
            self._queue.appendleft(Group(group.tokens, group.is_target, arrival))
        self._log.clear()

    def _reveal(self, share: Share) -> None:
        self._track.reveal()
        share.shows = True
        match self._ahead:
            case Arrival(number=number):
                self.after_frame = number
                self.tally.frames_seen += 1
            case Asked(number=number, interrupts=interrupts) as asked:
                if interrupts and self.answering is not None:
                    self._ahead = replace(asked, cuts_off=True)
                (self._open.appendleft if interrupts else self._open.append)(number)
                if interrupts or self.answering is None:
                    self._begin_answer()
        if self._voice is not None:
            match self._ahead:
                case Arrival(frame=frame) as arrival:
                    self._voice.arrive(self._laid - 1, frame.video_s, self._drop_ratio(arrival))
                case Asked():
                    self._voice.arrive(self._laid - 1, None)
                    if self._last_said is not None:
                        self._last_said.forget()
            is_frame = isinstance(self._ahead, Arrival)
            self._unverified = is_frame and self._last_said is not None and self._last_said.is_whole
        share.revealed += [self._ahead] if self._ahead is not None else []
        self._ahead = None
        self._closed = self._closing
        self._full, self._spoke, self._unasked_words = self._asks or self._track.is_full, False, 0
        self._allow_words()

    def verify(self, rerun: Rerun, keep: Callable[[Refit], None]) -> None:
        """Read what was said last again, if a frame has arrived since, and decide whether to speak of it.

        All that has been laid out must have been written.

        Args:
            rerun: runs tokens again and stores nothing.
            keep: stores what came of it.
        """
        if not self._unverified or self._queue:
            return
        assert self._last_said is not None
        assert self._voice is not None
        value, found = self._last_said.measure(rerun, self._track.visible)
        self._unverified = False
        self._voice.measured(value)
        if not self._voice.may_speak:
            keep(found)
        self._allow_words()

    def _allow_words(self) -> None:
        """How many words may be spoken before the next source item."""
        if self._unverified:
            self.words_left = 0
            return
        silent = self.on_demand or self.answering is None
        if silent or not self.may_speak or (self._mode is Mode.OFFLINE and not self._closed):
            self.words_left = 0
        else:
            self.words_left = self.settings.words_after(self._laid - 1, last=True if self._closed else None)

    def compact(self, read: Callable[[Book], StoredKeys], *, layers: int, heads: int) -> Moves | None:
        """Drop what a full memory does not keep; None if it is not full, or this is not the time.

        It is before the first word of an answer, for a memory that fetches what is asked for. Else it is once the first
        word after the newest frame has been computed, which does not wait for it, or before anything more is laid out:
        in all modes alike. And all that has been laid out must have been written.

        Args:
            read: gives keys and values of the sources in a book.
            layers, heads: of the model's cache.

        Raises:
            ValueError: if the policy keeps what cannot be kept.
        """
        is_time = self._asks or self._spoke or (self._may_lay and not self.words_left)
        if not self._full or self._queue or not is_time:
            return None
        self._full = self._asks = False
        oldest = min([self._asked + 1, *self._open, *([] if self.answering is None else [self.answering])])
        return self._track.compact(read, open_question=oldest, asking=self.answering, layers=layers, heads=heads)

    @property
    def host(self) -> HostBlocks | None:
        """What its memory has stored on the host, if it does."""
        return None if self._track.book is None else self._track.book.host

    def release(self) -> None:
        """Give up what is stored on the host."""
        if self._track.book is not None:
            self._track.book.host = None

    @property
    def said(self) -> Int32[np.ndarray, "W"]:
        """Ids of the words that have not been dropped."""
        return self._track.said

    def _next_arrival(self) -> Arrival | Asked:
        """The next frame or question to take in; in real time, what has fallen behind is dealt with."""
        frames = [*itertools.takewhile(lambda one: isinstance(one, Arrival), self._arrivals)]
        if self._when_behind is not None and len(frames) > 1:
            if self._when_behind == "delay":
                self.tally.frames_delayed += 1
            else:
                earliest, newest, others = cast(Arrival, frames[0]), cast(Arrival, frames[-1]), len(frames) - 1
                for _ in frames:
                    self._arrivals.popleft()
                if self._when_behind == "drop":
                    self.tally.frames_dropped += others
                    return newest
                self.tally.frames_merged += others
                return replace(earliest, frame=merge_frames(earliest.frame, newest.frame), last=newest.last)
        return self._arrivals.popleft()
