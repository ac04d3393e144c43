"""The scheduler of one stream: what it has to perceive and to say, and what of it the next pass takes. No device.

Tokens that have been laid out wait in a queue of groups (a prompt, a frame, words). A pass takes some of them from the
front, and the word that was spoken last once all that it may see is written or in the same pass.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from jaxtyping import Int32

from swjax.inference.arrivals import Arrivals
from swjax.inference.frames import Frame
from swjax.inference.group_queue import GroupQueue
from swjax.inference.memory import KEEP_ALL, Book, Moves, StoredKeys
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
        when_behind: what becomes of frames that cannot be taken in by the time that the next one arrives; None where
            frames do not come by a clock.
        apart: whether sources and words are computed on different devices.
        on_demand: whether words are spoken when they are asked for (`demand`), not by the schedule.
        watches_on: whether a stream that speaks by its schedule watches until the video ends, for more questions, when
            all is answered.

    Attributes:
        settings, on_demand: as above.
        arrivals: what has come and has not been laid out.
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
        self._apart = apart
        self.on_demand, self._watches_on = on_demand, watches_on
        self._full = self._spoke = self._asks = False
        self._unasked_words = 0
        self._queue = GroupQueue(keeps_all=mode is Mode.RECOMPUTE)
        self._lay_pieces([prompt] if isinstance(prompt, np.ndarray) else prompt)
        self.prompt, self.tally = self._queue.left, Tally()
        self._gaps = deque([None] if gaps is None else gaps)
        self.arrivals = Arrivals(
            settings,
            mode,
            when_behind=when_behind,
            on_demand=on_demand,
            prompt=self.prompt,
            videos=len(self._gaps),
            tally=self.tally,
        )
        self._ahead: Arrival | Asked | None = None
        self._laid = 0
        self._open: deque[int] = deque()
        self.answering: int | None = 0
        self._closing, self._closed = not self._gaps, False
        self.spoken, self.words_left, self.after_frame = 0, 0, -1
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

    def ask(self, pieces: tuple[Piece, ...], now: float, *, interrupts: bool) -> int:
        """A question has come behind the frames that have arrived; returns its number.

        Args:
            pieces: its tokens and images, from `encode_later`.
            now: seconds, by the clock of the engine.
            interrupts: whether it breaks off the answer under way.

        Raises:
            ValueError: if it cannot be asked now, or does not fit into what the memory keeps.
        """
        return self.arrivals.ask(pieces, now, interrupts=interrupts, is_answering=self.answering is not None)

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
    def ends(self) -> tuple[int, int]:
        """The first slot, and the one behind the last, that the stream needs soon."""
        lowest, highest = self._track.ends
        match self.arrivals.coming:
            case Arrival(frame=frame):
                highest += frame.units
            case Asked() as question:
                highest += question.length
        return lowest - 1, highest

    @property
    def said_all(self) -> bool:
        """Whether the limit on words after the last frame is reached, and no turn follows."""
        left = self.words_left or self.arrivals.turns or self._hidden or self._unverified
        return self._closed and not left and not self.on_demand

    @property
    def answered(self) -> bool:
        """Whether all that was asked is answered."""
        return self.answering is None and not self.arrivals.has_question and not isinstance(self._ahead, Asked)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be said."""
        return self.answered and not self.on_demand and (self._closed or not self._watches_on)

    def to_encode(self) -> Iterator[Arrival]:
        """Frames whose features are needed, the next first; one that has only arrived is encoded ahead of its turn."""
        yield from self._queue.to_encode()
        yield from self.arrivals.to_encode()

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
        return self.arrivals.waits or bool(self.arrivals.finished and not self.words_left and self._laid)

    def lay(self) -> None:
        """Lay out what may be perceived now."""
        if self._full or not self._may_lay:
            return
        if self._turn_is_due:
            self._lay_turn()
            return
        if not self.arrivals.is_looked_at():
            return
        # What closes the video belongs to its last frame, so it comes before the prefix where nothing has been said.
        if (self.arrivals.waits or self.spoken) and (before := self._track.before_frame()) is not None:
            self._queue.add(before, is_target=True)
        arrival = self.arrivals.take()
        if self._mode is Mode.RECOMPUTE and self._laid:
            self._queue.start_again()
        if arrival is not None:
            self._ahead = arrival
            self._laid += 1
        if isinstance(arrival, Asked):
            (text,) = cast(tuple[np.ndarray], arrival.pieces)
            self._queue.add(self._track.text(text, is_item=True))
        if isinstance(arrival, Arrival):
            drops, one_at_least = self.settings.drop is not None, not self._design.grouped
            arrival.places = arrival.choose_places(drops=drops, one_at_least=one_at_least)
            tokens = self._track.frame(*arrival.frame.sides, arrival.number, arrival.places)
            self.tally.tokens_dropped += arrival.frame.units - len(arrival.places)
            if len(arrival.places):
                self._queue.add(tokens, arrival=arrival)
        if arrival is None or (isinstance(arrival, Arrival) and arrival.last):
            gap = self._gaps.popleft()
            if gap is None:
                self._queue.add(self._track.trailer())
            else:
                self._lay_pieces(gap)
            self._track.begin_video()
            self._closing = not self._gaps

    def _lay_pieces(self, pieces: Sequence[Piece]) -> None:
        """Lay out texts and images of a question."""
        for piece in pieces:
            if isinstance(piece, Frame):
                every = np.arange(piece.units, dtype=np.int32)
                image = Arrival(piece, -1, 0.0, False, places=every)
                self._queue.add(self._track.image(*piece.sides), arrival=image)
            else:
                self._queue.add(self._track.text(piece))

    @property
    def _turn_is_due(self) -> bool:
        if not self.arrivals.turns or not self._closed or self._hidden or self._unverified:
            return False
        said = self.answering is None or (not self.words_left and not self.on_demand)
        return said or self.arrivals.turns[0].interrupts

    def _lay_turn(self) -> None:
        """Lay out the question of a later turn; an answer that has not ended by itself is ended, as in training."""
        cuts_off = self.answering is not None
        if cuts_off:
            for tokens in (self._track.feed(), self._track.end_answer()):
                self._queue.add(tokens, is_target=True)
            self.answering, self.words_left = None, 0
            self._open.clear()
        self._queue.add(self._track.feed(), is_target=True)
        self._ahead = replace(self.arrivals.turns.popleft(), cuts_off=cuts_off)
        opens, *pieces = self._ahead.pieces
        self._queue.add(self._track.turn(cast(np.ndarray, opens)))
        self._lay_pieces(pieces)

    def need(self) -> int:
        """Tokens that the next pass should have room for."""
        waiting = self._queue.left
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
        """Tokens that have been laid out and may be written now."""
        return max(0, self._queue.left - self._held)

    @property
    def _held(self) -> int:
        """How many of the tokens that have been laid out wait for what follows them.

        On demand and in arrival order the last source waits, as a word does, until its successor is wanted or something
        follows: the next word is chosen in the pass in which it is written.
        """
        waits = self.on_demand and self._design.storage is Storage.ARRIVAL and not self.words_left
        # What a full memory keeps is moved together before anything else is laid out.
        more = self._full and (self.arrivals.waits or (self.arrivals.finished and not self._closing))
        return int(waits and not self._track.waiting and not more)

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
            self._queue.take(share, room - reserved, hold=self._held)
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
        self._queue.add(self._track.end_answer(token), is_target=True)
        self.spoken += 1
        self.arrivals.answered(self.answering or 0)
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
        self._queue.add(self._track.begin_answer(), is_target=True)

    def _speak(self, share: Share, room: int, *, alone: bool) -> None:
        """Add the waiting word, where one may be spoken in this pass, and with it more of the next frame."""
        waiting = len(self._track.waiting)
        if not self.words_left or len(share) + waiting > room or self._queue.has_words:
            return
        if self._asks:
            return
        if waiting and alone and (not self._queue.is_empty or share.parts):
            return  # one thing at a time
        words = None
        if waiting:
            self._fed = tokens = self._track.feed()
            words = Group(tokens, is_target=True, taken=waiting)
        if not alone and not (self._apart and share.parts):
            self.lay()
            self._queue.take(share, room - waiting, hold=self._held)
        if words is not None:
            share.parts.append(Part(words, 0, waiting))
            self._queue.note(words)
        share.speaks = self._spoke = True

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
                    self._voice.arrive(self._laid - 1, frame.video_s, arrival.drop_ratio)
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
        if not self._unverified or not self._queue.is_empty:
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
        if not self._full or not self._queue.is_empty or not is_time:
            return None
        self._full = self._asks = False
        oldest = min([self.arrivals.asked + 1, *self._open, *([] if self.answering is None else [self.answering])])
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
