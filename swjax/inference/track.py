"""The book of one stream: ids, slots and spans of its tokens, in the order in which they come. No model, no device.

Frames may be laid out one ahead of what the words can see, so that they are computed while words are spoken: `frame`
lays one out, `reveal` shows what has been laid out to the words that follow. So it is with text that arrives between
frames (`text` with `is_item`): a source item, like a frame. An answer ends by `end_answer`, or is broken off, and
`begin_answer` opens the next; the book of such a stream is the layout of `swjax.streaming.build_conversation`. Behind
the video `turn` lays out the question of a later turn, as `swjax.streaming.build_layout` does.
"""

from collections.abc import Callable
from dataclasses import astuple
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from swjax.inference.memory import KEEP_ALL, TEXT, Book, Moves, ReKV, StoredKeys, Window
from swjax.inference.memory.anchor import anchored
from swjax.inference.memory.book import Sinks, incoming
from swjax.inference.sampler import NO_TOKEN
from swjax.inference.settings import StreamSettings
from swjax.streaming import (
    PositionCounts,
    SpecialTokens,
    Storage,
    StoredCounts,
    begin_turn,
    first_positions,
    place_frame,
    place_image,
    place_text,
    place_words,
    reveal,
    store_sources,
    store_targets,
)


class Tokens(NamedTuple):
    """Tokens to be written into the cache. Slots and spans count from the origin, to the left below zero.

    Attributes:
        token_ids: the tokens.
        positions: temporal, height and width ids.
        start, stop: the slots that each sees.
        slots: where their keys and values go.
    """

    token_ids: Int32[np.ndarray, "N"]
    positions: Int32[np.ndarray, "3 N"]
    start: Int32[np.ndarray, "N"]
    stop: Int32[np.ndarray, "N"]
    slots: Int32[np.ndarray, "N"]

    def part(self, first: int, stop: int) -> "Tokens":
        """Some of them."""
        return Tokens(*(array[..., first:stop] for array in self))


def join(pieces: list[Tokens]) -> Tokens:
    """One after another."""
    return Tokens(*(np.concatenate(arrays, axis=-1) for arrays in zip(*pieces, strict=True)))


def question_words(token_ids: Int32[np.ndarray, "S"], special: SpecialTokens) -> Int32[np.ndarray, "n"]:
    """What a question asks: the last message of it, without the marks of the chat."""
    (starts,) = np.nonzero(token_ids == special.im_start)
    message = token_ids[starts[-1] + 1 if len(starts) else 0 :]
    (lines,) = np.nonzero(message == special.newline)
    text = message[lines[0] + 1 if len(lines) else 0 :]
    marks = [one for one in astuple(special) if isinstance(one, int)]
    asked = text[~np.isin(text, marks)]
    return asked if len(asked) else message


class Track:
    """Where one stream stands.

    Attributes:
        frames: how many frames have been laid out.
        waiting: ids of tokens that have been spoken but not fed: they are fed when their successor is wanted, or they
            would have seen fewer frames than in training. At first the assistant prefix.
        book: what is stored, where a memory policy may drop some of it; else None.
    """

    def __init__(self, settings: StreamSettings, special: SpecialTokens, *, tokens_per_second: float):
        self._design, self._special = settings.design, special
        self._stride = settings.second_per_grid_t * tokens_per_second
        self._words = first_positions(self._design, settings.gap)
        self._ahead: PositionCounts | None = None
        self._stored, self._visible = StoredCounts(0, 0), 0
        self._waiting_positions: Int32[np.ndarray, "3 N"] | None = None
        self.waiting: tuple[int, ...] = special.prefix
        self._said: tuple[int, ...] = (NO_TOKEN,) * len(special.prefix)
        self._memory, self._gap = settings.memory, settings.gap
        self._moved = self._sinks_moved = np.zeros((2, 3), np.int32)  # of sources, and of words
        is_joint = settings.design.counting.words_move_sources
        self.book = None if settings.memory == KEEP_ALL else Book(is_joint=is_joint)
        self.frames = self._questions = self._asked = 0
        self._newest = self._newest_laid = TEXT
        self._piece: int | None = None
        self._next_word = -len(self.waiting)

    @property
    def ends(self) -> tuple[int, int]:
        """The first slot, and the one behind the last, of all that has been laid out or spoken."""
        sources, targets = self._stored.sources, self._stored.targets + len(self.waiting)
        return (-targets, sources) if self._design.grouped else (0, sources + targets)

    def text(self, token_ids: Int32[np.ndarray, "S"], *, is_item: bool = False) -> Tokens:
        """Lay out text among the sources: the prompt, what closes the video, or a question between frames.

        Args:
            token_ids: the text.
            is_item: whether it arrives between frames, with the marks that end one piece of video and begin another, of
                which the next frame is the first; `before_frame` goes before it.
        """
        self._piece = None if is_item else self._piece
        counts = self._ahead or self._words
        self._ahead, positions = place_text(self._design, counts, len(token_ids), is_item=is_item)
        self._questions += is_item
        if is_item:
            self._note_question(token_ids)
        elif self.book is not None and not self.book.prompt:
            self.book.prompt, self.book.questions = len(token_ids), {0: question_words(token_ids, self._special)}
        positions = positions + self._moved[0, 0]
        return self._store_sources(token_ids, positions, TEXT - self._questions if is_item else TEXT)

    def image(self, rows: int, columns: int) -> Tokens:
        """Lay out an image of a question."""
        self._ahead, positions = place_image(self._design, self._ahead or self._words, rows, columns)
        tokens = np.full(rows * columns, self._special.image_pad, np.int32)
        return self._store_sources(tokens, positions, TEXT)

    def begin_video(self) -> None:
        """The next frame is the first of another video."""
        self._piece = None

    def turn(self, token_ids: Int32[np.ndarray, "S"]) -> Tokens:
        """Lay out the question of a later turn, up to its first image; nothing that has been said may wait."""
        self._ahead = begin_turn(self._design, self._words)
        self._note_question(token_ids)
        return self.text(token_ids)

    def _note_question(self, token_ids: Int32[np.ndarray, "S"]) -> None:
        self._asked += 1
        if self.book is not None:
            self.book.questions[self._asked] = question_words(token_ids, self._special)

    def before_frame(self) -> Tokens | None:
        """What must be written before another frame, a question or the end of the video is laid out; None if nothing.

        In arrival order that is all that has been spoken. In grouped designs it is the prefix but for its last token,
        when nothing has been said since the first frame: those tokens see that frame alone.
        """
        if not self.frames or not self.waiting:
            return None
        if self._design.storage is Storage.ARRIVAL:
            return self.feed()
        if self._design.grouped and self._next_word == -len(self._special.prefix):
            return self.feed(len(self.waiting) - 1)
        return None

    def frame(self, rows: int, columns: int, number: int, places: Int32[np.ndarray, "n"] | None = None) -> Tokens:
        """Lay out the next frame; `before_frame` goes before it.

        Args:
            rows, columns: its size in merged patches.
            number: frames since the first one of the video, those that were dropped included.
            places: of its tokens that are stored, ascending; None for all. What comes later counts on as if all were.
        """
        self._piece = number if self._piece is None else self._piece
        self._ahead, positions = place_frame(
            self._design, self._ahead or self._words, number - self._piece, rows, columns, self._stride
        )
        self.frames += 1
        self._newest_laid = number
        positions = positions + self._moved[0][:, None]
        places = np.arange(rows * columns, dtype=np.int32) if places is None else places
        tokens = np.full(len(places), self._special.video_pad, np.int32)
        return self._store_sources(tokens, positions[:, places], number, places)

    @property
    def visible(self) -> int:
        """Sources that words may see."""
        return self._visible

    def trailer(self) -> Tokens:
        """Lay out the sources that close the video."""
        return self.text(np.array(self._special.trailer, np.int32))

    def reveal(self) -> None:
        """Let the words that follow see all that has been laid out."""
        if self._ahead is not None:
            self._words = reveal(self._design, self._words, self._ahead)
        self._ahead, self._visible, self._newest = None, self._stored.sources, self._newest_laid

    def feed(self, count: int | None = None) -> Tokens:
        """Store the first `count` of the waiting tokens (None: all); they see what has been revealed."""
        positions = self._place_waiting()
        count = len(self.waiting) if count is None else count
        stored, slots, spans = store_targets(self._design, self._stored._replace(sources=self._visible), count)
        self._stored = self._stored._replace(targets=stored.targets)
        if self.book is not None:
            self.book.add_words(
                slots, positions[:, :count], self._next_word, self.waiting[:count], self._said[:count], self._newest
            )
        self._next_word += count
        fed = np.array(self.waiting[:count], np.int32)
        self.waiting, self._waiting_positions = self.waiting[count:], positions[:, count:]
        self._said = self._said[count:]
        return Tokens(fed, positions[:, :count], spans.start, spans.stop, slots)

    def say(self, token: int) -> None:
        """A token has been spoken: it has its ids now, and waits to be fed."""
        self.waiting, self._waiting_positions = (token,), None
        self._said = self.waiting
        self._place_waiting()

    def end_answer(self, token: int | None = None) -> Tokens:
        """The token that ends an answer has been spoken (None: `<|im_end|>`, which was not): store it, and let the
        newline behind it wait."""
        self.say(self._special.im_end if token is None else token)
        stored = self.feed()
        self._wait((self._special.newline,))
        return stored

    def begin_answer(self) -> Tokens:
        """Begin the next answer: store what waits and its prefix, but for the last token, which waits for a word."""
        self._wait(self._special.prefix)
        return self.feed(len(self.waiting) - 1)

    def _wait(self, token_ids: tuple[int, ...]) -> None:
        """Put more tokens behind those that wait."""
        before = self._place_waiting()
        self._words, positions = self._place_words(len(token_ids))
        self.waiting += token_ids
        self._said += (NO_TOKEN,) * len(token_ids)
        self._waiting_positions = np.concatenate([before, positions], axis=1)

    def _place_waiting(self) -> Int32[np.ndarray, "3 N"]:
        if self._waiting_positions is None:
            self._words, self._waiting_positions = self._place_words(len(self.waiting))
        return self._waiting_positions

    def _place_words(self, count: int) -> tuple[PositionCounts, Int32[np.ndarray, "3 N"]]:
        counts, positions = place_words(self._design, self._words, count)
        return counts, positions + self._moved[1][:, None]

    @property
    def is_full(self) -> bool:
        """Whether the memory policy wants to drop something."""
        return self.book is not None and self._memory.is_full(self.book)

    def compact(
        self, read: Callable[[Book], StoredKeys], *, open_question: int, asking: int | None, layers: int, heads: int
    ) -> Moves:
        """Drop what a full memory does not keep; all that has been laid out must be written.

        Ids stay as they are, but for what a window's `positions` turns; what has not been revealed stays. It is moved
        together: in grouped designs to both sides of the origin, else words behind sources, whose order among the keys
        that a query sees makes no difference.

        Args:
            read: gives keys and values of the sources in a book.
            open_question: number of the oldest question that is not answered.
            asking: number of the question that is being answered; None for none.
            layers, heads: of the model's cache.

        Raises:
            ValueError: if the policy keeps what cannot be kept.
        """
        book = self.book
        assert book is not None, "there is a policy"
        book.open_question = open_question
        book.asking = book.asking if asking is None else asking
        book.questions = {one: words for one, words in book.questions.items() if one >= min(open_question, book.asking)}
        book.set_back = self._moved[0]
        seen = book.first(self._visible)
        kept = self._memory.keep(seen, lambda: read(seen))
        seen.check(kept, layers=layers, heads=heads)
        book.host = seen.host
        hidden = np.arange(self._visible, len(book.source_slots), dtype=np.int32)
        hidden = np.broadcast_to(hidden, (*np.shape(kept.sources)[:-1], len(hidden)))
        kept = kept._replace(sources=np.concatenate([kept.sources, hidden], axis=-1))
        fetched = kept.fetched
        sources, words = np.shape(kept.sources)[-1] + (fetched.length if fetched else 0), len(kept.words)
        source_slots, word_slots = (np.arange(count, dtype=np.int32) for count in (sources, words))
        word_slots = -1 - word_slots if self._design.grouped else sources + word_slots
        self._stored, self._visible = StoredCounts(sources, words), sources - hidden.shape[-1]
        moves = self._anchor(book.keep(kept, source_slots, word_slots))
        return moves if fetched is None else moves._replace(incoming=incoming(book, fetched))

    def _anchor(self, moves: Moves) -> Moves:
        """Turn what has been kept, and what will come, as the policy's `positions` says."""
        book, memory = self.book, self._memory
        assert book is not None, "there is a policy"
        if not isinstance(memory, Window | ReKV):
            return moves
        sinks = book.prompt, int(np.count_nonzero(book.words < memory.first_words))
        found = anchored(
            book,
            sinks,
            positions=memory.positions,
            joint=book.is_joint,
            reanchor_at=min(memory.reanchor_at, self._gap // 2) if self._design.from_the_gap else memory.reanchor_at,
        )
        if found is None:
            return moves
        sources, words = found.turns(sinks, len(book.source_slots), len(book.words))
        turn = sources.reshape(3, *(1,) * (book.ids.ndim - 2), -1)
        book.ids, book.word_ids = book.ids + turn, book.word_ids + words
        self._moved = self._moved + np.stack([found.sources, found.words])
        if self._waiting_positions is not None:
            self._waiting_positions = self._waiting_positions + found.words[:, None]
        if memory.positions != "contiguous":
            comes = len(book.source_slots) + len(book.words) - len(moves.target)  # from the host, turned on its way
            own = np.delete(sources, range(*book.fetched), axis=1) if comes else sources
            return moves._replace(turn=np.concatenate([words, own], axis=1))
        self._sinks_moved = self._sinks_moved + np.stack([found.source_sinks, found.word_sinks])
        first_word = -sinks[1] if self._design.grouped else len(book.source_slots)
        firsts = zip((0, first_word), sinks, self._sinks_moved, strict=True)
        return moves._replace(sinks=tuple(Sinks(*one, bool(index)) for index, one in enumerate(firsts)))

    @property
    def said(self) -> Int32[np.ndarray, "W"]:
        """Ids of the chosen words that have not been dropped."""
        assert self.book is not None, "there is a policy"
        stored = np.concatenate([self.book.said, np.array(self._said, np.int32)])
        return stored[stored >= 0]

    def _store_sources(
        self, token_ids: np.ndarray, positions: np.ndarray, frame: int, places: np.ndarray | None = None
    ) -> Tokens:
        self._stored, slots, spans = store_sources(self._design, self._stored, len(token_ids))
        if self.book is not None:
            self.book.add_sources(slots, positions, frame, places)
        return Tokens(token_ids, positions, spans.start, spans.stop, slots)
