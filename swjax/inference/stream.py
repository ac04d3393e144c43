"""A stream of a batched engine, as its user and the engine hold it."""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int32
from tokenizers.decoders import DecodeStream

from swjax.inference.dropping.watcher import Watcher
from swjax.inference.events import EndReason, FrameSeen, QuestionSeen, StreamEnded, StreamEvent, TokenSpoken
from swjax.inference.frames import Frame
from swjax.inference.lane import Lane
from swjax.inference.memory import KEEP_ALL, Book, StoredKeys
from swjax.inference.packing import RowTokens, row_tokens
from swjax.inference.parts import Arrival, Part, Share, Tally
from swjax.inference.prompt import Question, check_keeps_all, encode_later
from swjax.inference.room import bounded_room, padded_size
from swjax.inference.rows import Piece
from swjax.inference.sampler import NO_TOKEN, NotFiniteError, Sampling
from swjax.inference.scheduler import Scheduler
from swjax.inference.settings import StreamSettings
from swjax.inference.voice import Deciding
from swjax.models.config import ModelConfig
from swjax.streaming import SpecialTokens

KEPT_WORDS = 4096
"""Words that a stream with a memory keeps at least, and twice as many at most; its events have handed out all."""


@dataclass(eq=False)
class Stream:
    """One stream of an engine; made by `BatchEngine.open`.

    Attributes:
        settings: how it is spoken about.
        answer: ids of the answer tokens spoken so far, to all questions, without end tokens; where a memory may drop
            something, the last `KEPT_WORDS` of them at least.
        ended: why it has ended, None while it goes on.
        opened_s: when it was opened, by the engine's clock.
        tally: what it has cost.
        row: its row of the engine's batch.
        fault: the error of its own at which it has ended, or will at the next step.
    """

    settings: StreamSettings
    answer: list[int]
    ended: EndReason | None
    tally: Tally
    row: int
    opened_s: float
    _scheduler: Scheduler = field(repr=False)
    _tokenizer: Any = field(repr=False)
    _special: SpecialTokens = field(repr=False)
    _stops: frozenset[int] = field(repr=False)
    _origin: int = field(repr=False)
    _cells: list[int] = field(repr=False)
    fault: Exception | None = None
    _decoder: DecodeStream = field(repr=False, default_factory=lambda: DecodeStream(skip_special_tokens=True))
    _watcher: Watcher | None = None
    _looked_at: list[Arrival] = field(repr=False, default_factory=list)
    _decoded: int = 0
    _parts: bool = False
    _words: int = 0
    _texts: list[str] = field(repr=False, default_factory=list)
    _held: list[tuple[int, Piece]] = field(repr=False, default_factory=list)

    @property
    def text(self) -> str:
        """The answer so far, as far as `answer` has it, up to the last whole character."""
        return "".join(self._texts)

    @property
    def answered(self) -> bool:
        """Whether all that it was asked is answered, up to the end token."""
        return self._scheduler.answered

    @property
    def finished(self) -> bool:
        """Whether no frame follows those that have arrived."""
        return self._scheduler.arrivals.finished

    @property
    def backlog(self) -> int:
        """Frames that have arrived and wait."""
        return self._scheduler.arrivals.backlog

    # What follows is for the engine, which advances streams and keeps what they are told in their rows.

    @property
    def origin(self) -> int:
        """Slot of the speaker's row at which the first source is stored."""
        return self._origin

    @property
    def ends(self) -> tuple[int, int]:
        """The first slot, and the one behind the last, that it needs soon, counted from its origin."""
        return self._scheduler.ends

    @property
    def has_work(self) -> bool:
        """Whether a pass could advance it now."""
        return self._scheduler.has_work

    @property
    def free_cells(self) -> int:
        """Cells of its inbox that hold no features which a pass still needs."""
        return len(self._cells)

    @property
    def choice(self) -> tuple[Sampling, int, Deciding]:
        """How its next token is chosen, how many have been before, and how it may decide about silence."""
        return self.settings.sampling, self._scheduler.spoken, self._scheduler.deciding

    @property
    def may_speak(self) -> bool:
        """Whether its rule of speaking, if it has one, allows a word before the next frame."""
        return self._scheduler.may_speak

    def arrive(self, frame: Frame, now: float, *, last: bool) -> None:
        """A frame has come.

        Args:
            frame: the next of the video.
            now: seconds, by the clock of the engine.
            last: whether it ends the video.

        Raises:
            ValueError: if the video has ended, or the frame cannot be taken in or is one too many for an explicit
                schedule.
        """
        self._scheduler.arrivals.arrive(frame, now, last=last)

    def ask(self, question: Question, now: float, *, config: ModelConfig, interrupts: bool) -> int:
        """A question has come; returns its number.

        An answer that decides when to speak goes on to the end of the video, so each question breaks off the answer
        before, once what has been begun is said.

        Args:
            question: text; after the last frame also texts and images.
            now: seconds, by the clock of the engine.
            config: the model's.
            interrupts: whether it breaks off the answer under way; under a rule of speaking it always does.

        Raises:
            ValueError: if the question cannot be used, or cannot be asked now.
        """
        interrupts = interrupts or self.settings.speaking_rule is not None
        pieces = encode_later(
            self._tokenizer,
            self._special,
            question,
            is_turn=self._scheduler.arrivals.finished,
            vocab_size=config.text.vocab_size,
            chat=config.chat,
        )
        if not isinstance(question, str):
            check_keeps_all(self.settings)
        return self._scheduler.ask(pieces, now, interrupts=interrupts)

    def finish(self) -> None:
        """No frame follows."""
        self._scheduler.arrivals.finish()

    def demand(self, words: int) -> None:
        """So many words are wanted now, of a stream that speaks on demand."""
        self._scheduler.demand(words)

    def need(self) -> int:
        """Tokens that the next pass should have room for."""
        return self._scheduler.need()

    def plan(self, room: int) -> Share:
        """Take what the next pass computes of it, at most `room` tokens."""
        return self._scheduler.plan(room)

    def room(self, frame_units: int, chunk: int) -> tuple[int, int] | None:
        """Slots to the left and to the right of its origin that it will ever need; None where nothing bounds them."""
        return bounded_room(self.settings, frame_units, chunk, self._scheduler.prompt)

    def _free_unused(self) -> None:
        """Give up the cells of frames that have been laid out without a token."""
        laid_out = [(one, one.places) for one in self._looked_at if one.places is not None]
        self._cells += [one.cell for one, places in laid_out if not len(places) and one.cell is not None]
        self._looked_at = [one for one in self._looked_at if one.places is None]

    def encode_ahead(self, perceiver: Lane) -> None:
        """Start the vision tower on the frames that are needed next, as far as there are cells for their features."""
        self._free_unused()
        for arrival in self._scheduler.to_encode():
            if not self._cells:
                break
            arrival.cell = self._cells.pop()
            perceiver.encode(self.row, arrival.cell, arrival.frame.patches, arrival.frame.grid_hw)
            self.tally.frames_encoded += 1
            if self._watcher is not None:
                features = perceiver.features(self.row, arrival.cell)
                arrival.keep = self._watcher.look(arrival.frame, arrival.number, features)
                self._looked_at.append(arrival)

    def use_cells(self, count: int) -> None:
        """Use an inbox of so many empty cells."""
        self._cells = list(range(count))

    def row_tokens(self, share: Share, *, apart: bool, frame_units: int) -> tuple[RowTokens | None, RowTokens | None]:
        """What the perceiver and the speaker are given of a share; its frames give their cells up.

        Args:
            share: what a pass takes.
            apart: whether they are two lanes; else the speaker is given all.
            frame_units: features in a cell.
        """
        here = [part for part in share.parts if part.group.is_target or not apart]
        there = [part for part in share.parts if apart and not part.group.is_target]
        made = (
            row_tokens(there, 0, frame_units) if there else None,
            row_tokens(here, self._origin, frame_units) if here else None,
        )
        self.tally.tokens_computed += len(share)
        for part in share.parts:
            if part.group.arrival is not None and part.completes:
                assert part.group.arrival.cell is not None
                self._cells.append(part.group.arrival.cell)
        return made

    def hand_over(self, share: Share, perceiver: Lane, speaker: Lane) -> None:
        """Start to move what has been perceived; what words may see now is stored on the speaker's side.

        Args:
            share: what the pass takes of the stream.
            perceiver: the lane that computes its sources.
            speaker: another lane, which computes its words.
        """
        for part in _perceived(share.parts):
            first = int(part.group.tokens.slots[0])
            piece = perceiver.take(self.row, first, padded_size(len(part.group.tokens.slots)))
            self._held.append((first, speaker.fetch(piece)))
        if share.shows:
            for first, piece in self._held:
                speaker.put(self.row, self._origin + first, piece)
            self._held.clear()

    def compact(self, speaker: Lane, perceiver: Lane) -> None:
        """Drop what its memory does not keep, if that is full, and move together what stays."""

        def read(book: Book) -> StoredKeys:
            return speaker.read(self.row, book.source_slots, self._origin)

        moves = self._scheduler.compact(read, layers=speaker.layers, heads=speaker.heads)
        if moves is None:
            return
        speaker.move(self.row, moves, self._origin)
        if perceiver is not speaker:
            perceiver.move(self.row, moves.of_sources(), 0)
            self._held = [(moves.new_slot(first), piece) for first, piece in self._held]
        if (host := self._scheduler.host) is not None:
            self.tally.blocks_stored, self.tally.blocks_forgotten = host.stored, host.forgotten
            self.tally.host_bytes = host.bytes
        if self.settings.sampling.repetition_penalty != 1:
            speaker.remember(self.row, self._scheduler.said)

    def verify(self, speaker: Lane) -> None:
        """Read what was said last again, where its rule of speaking asks for that."""
        self._scheduler.verify(
            lambda tokens, following: speaker.rerun(self.row, tokens, following, self._origin),
            lambda found: speaker.put(self.row, found.first, found.piece),
        )

    def shift(self, slots: int) -> None:
        """Its row has had slots added on the left."""
        self._origin += slots

    def tell(self, share: Share, tokens: Int32[np.ndarray, "B"] | None, now: float) -> list[StreamEvent]:
        """What has happened in a pass.

        Args:
            share: what the pass has taken.
            tokens: those that it has chosen, for all rows; None if none.
            now: when it has ended.
        """
        self._free_unused()
        wall_s = now - self.opened_s
        events: list[StreamEvent] = []
        for arrival in share.revealed:
            if not isinstance(arrival, Arrival):
                events.append(QuestionSeen(arrival.number, wall_s, arrival.cuts_off))
                continue
            self.tally.largest_lag_s = max(self.tally.largest_lag_s, now - arrival.arrived_s)
            kept = None if self.settings.drop is None else arrival.kept
            events.append(FrameSeen(arrival.number, arrival.frame.video_s, wall_s, kept))
        if share.speaks:
            assert tokens is not None
            events += self._told(int(tokens[self.row]), wall_s)
        if self._scheduler.is_over:
            events.append(self.end("end_token", now))
        elif self._scheduler.said_all:
            events.append(self.end("token_limit", now))
        return events

    def _told(self, token: int, wall_s: float) -> list[StreamEvent]:
        """What the chosen token says."""
        question = self._scheduler.answering
        assert question is not None, "it speaks"
        if token == NO_TOKEN:
            self.fault = NotFiniteError(self._scheduler.spoken)
            return []
        if token in self._stops:
            self._scheduler.end_answer(token)
            return []
        self._scheduler.spoke(token)
        if question != self._decoded:
            self._decoded, self._decoder = question, DecodeStream(skip_special_tokens=True)
        decides = self.settings.speaking_rule is not None and token in astuple(self.settings.decisions)
        if decides:
            self._decoder, self._parts = DecodeStream(skip_special_tokens=True), bool(self._texts)
        text = "" if decides else self._decoder.step(self._tokenizer.backend_tokenizer, token) or ""
        if text and self._parts:  # one utterance and the next
            text, self._parts = f" {text}", False
        self.answer.append(token)
        self._texts.append(text)
        self._words += 1
        if self.settings.memory != KEEP_ALL and len(self.answer) > 2 * KEPT_WORDS:
            del self.answer[:-KEPT_WORDS], self._texts[:-KEPT_WORDS]
        return [TokenSpoken(self._words - 1, token, text, self._scheduler.after_frame, wall_s, question)]

    def end(self, reason: EndReason, now: float) -> StreamEnded:
        """It has ended."""
        self.ended = reason
        self._held.clear()
        self._scheduler.release()
        return StreamEnded(reason, self.text, now - self.opened_s)


def _perceived(parts: Sequence[Part]) -> Iterator[Part]:
    """The parts with which sources are written whole."""
    return (part for part in parts if part.completes and not part.group.is_target)
