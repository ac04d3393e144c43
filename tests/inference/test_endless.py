"""Streams without end: with a budget nothing grows, on the device or on the host, and nothing is compiled under way."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from full_passes import QUESTION, make_frames

from swjax.inference import BatchEngine, Sampling, StreamEnded, StreamSession, StreamSettings
from swjax.inference import stream as stream_module
from swjax.inference.memory import KEEP_ALL, PeakEnd, ReKV, StreamMem, Window
from swjax.inference.room import bounded_room

GRID = (4, 4)
BUDGET = Window(sources=96, words=8, first_words=2)
PENALIZED = Sampling(repetition_penalty=1.3)
MB = 2**20


@pytest.fixture(scope="module")
def compilations():
    """Seconds of each compilation so far."""
    found: list[float] = []

    def note(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield found
    jax.monitoring.unregister_event_duration_listener(note)


def make_engine(weights, **sizes):
    sizes = {
        "rows": 1,
        "frame_units": 4,
        "slots": 240,
        "word_slots": 32,
        "max_slots": 240,
        "chunk_sizes": (16,),
    } | sizes
    return BatchEngine(weights, **sizes)


def watched(engine, tokenizer, settings, frames):
    """Yields the stream after each frame and the words after it."""
    stream = engine.open(tokenizer, question=QUESTION, settings=settings)
    for index, frame in zip(range(frames), itertools.cycle(make_frames(8, 2, GRID)), strict=False):
        engine.see(stream, frame, last=index == frames - 1)
        while engine.has_work:
            engine.step()
        assert stream.fault is None
        yield stream


def held(compilations):
    """What a process holds: bytes of arrays on devices, of its memory, and what it has compiled."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return sum(array.nbytes for array in jax.live_arrays()), pages * 4096, len(compilations)


class Work:
    """What the device is asked for: passes over the weights with their sizes, and moves, one after another."""

    def __init__(self, lane):
        self.done: list = []
        advance, move = lane.advance, lane.move
        lane.advance = lambda tokens, size, speaking, *rest: (
            self.done.append((size, bool(speaking))) or advance(tokens, size, speaking, *rest)
        )
        lane.move = lambda *arguments: self.done.append("move") or move(*arguments)

    def taken(self):
        done, self.done = self.done, []
        return done


def test_nothing_grows(weights, tokenizer, compilations):
    """Neither what is held nor what is done for a frame; and a frame's first word never waits for a move."""
    engine = make_engine(weights)
    work, by_frame = Work(engine._speaker), []
    settings = StreamSettings(wait_k=2, max_tail=2, memory=BUDGET, sampling=PENALIZED)
    for index, stream in enumerate(watched(engine, tokenizer, settings, 400)):
        by_frame.append(work.taken())
        if index == 50:
            early, slots = held(compilations), engine._speaker.slots
        if index == 150:
            later = held(compilations)
        book = stream._scheduler._track.book
        assert len(book.source_slots) <= BUDGET.sources + 4
        said = np.flatnonzero(engine._speaker._said[0])
        assert index % 50 or set(said) <= {*book.said.tolist(), *stream.answer[-2:]}
    last = held(compilations)
    assert stream.ended == "token_limit"
    assert engine._speaker.slots == slots == 240
    assert last[0] == early[0], "bytes on the device"
    assert last[2] == early[2], "compilations"
    assert last[1] - later[1] < 5 * MB, "memory of the process"
    passes = [sorted(one for one in done if one != "move") for done in by_frame]
    assert all(one == passes[50] for one in passes[50:-1]), "passes over the weights"
    moves = [number for number, done in enumerate(by_frame) if "move" in done]
    assert max(done.count("move") for done in by_frame) == 1
    assert all(by_frame[number][: by_frame[number].index("move")][-1][1] for number in moves), "a word comes first"


def test_without_a_budget_all_of_it_grows(weights, tokenizer, compilations):
    """The control of the test above."""
    engine = make_engine(weights, max_slots=4096, grow_ahead=False)
    for index, _ in enumerate(watched(engine, tokenizer, StreamSettings(wait_k=2, max_tail=2), 70)):
        if index == 40:
            early = held(compilations)
    last = held(compilations)
    assert engine._speaker.slots > 240
    assert last[0] > early[0]
    assert last[2] > early[2]


def test_what_was_said_is_handed_out_and_not_kept(weights, tokenizer, monkeypatch):
    monkeypatch.setattr(stream_module, "KEPT_WORDS", 5)
    answers = {}
    for memory in (KEEP_ALL, Window(sources=180, words=100)):
        settings = StreamSettings(wait_k=2, max_tail=2, memory=memory)
        engine = make_engine(weights, slots=480, word_slots=200, max_slots=480)
        *_, stream = watched(engine, tokenizer, settings, 10)
        answers[memory == KEEP_ALL] = stream.answer
    assert len(answers[True]) == 20
    assert 5 <= len(answers[False]) <= 10
    assert answers[False] == answers[True][-len(answers[False]) :]


def test_rows_are_made_as_long_as_the_budget_needs_at_the_first_frame(weights, tokenizer):
    settings = StreamSettings(wait_k=2, max_tail=2, memory=BUDGET)
    engine = make_engine(weights, slots=40, word_slots=8, max_slots=1000)
    seen = [(stream, set(engine._speaker._prepared)) for stream in watched(engine, tokenizer, settings, 30)]
    stream, prepared = seen[-1]
    assert seen[0][1] == prepared, "none longer than these are compiled, however full they are"
    assert len(prepared) > 1
    room = bounded_room(settings, 4, engine._sizes.passes[-1], stream._scheduler.prompt)
    assert room == (11 + 2 + 9, 96 + 4 + 24)
    assert (engine._speaker.left, engine._speaker.slots) == (room[0], sum(room))
    with pytest.raises(ValueError, match="memory needs 22 slots for words and 124 for sources, and rows have 8 and 32"):
        list(watched(make_engine(weights, slots=40, word_slots=8, max_slots=40), tokenizer, settings, 1))


def test_what_does_not_fit_into_a_budget_is_refused(weights, tokenizer):
    small = StreamSettings(memory=Window(sources=40))
    session = StreamSession(weights, tokenizer, question=QUESTION, settings=small)
    with pytest.raises(
        ValueError, match=r"the frame has 16 tokens, and the memory keeps 35, of which .* take 26; give"
    ):
        session.see(make_frames(1, 0, (8, 8))[0])
    stream = (engine := make_engine(weights)).open(
        tokenizer, question=QUESTION, settings=StreamSettings(max_tail=2, memory=BUDGET), watches_on=True
    )
    engine.see(stream, make_frames(1, 0, GRID)[0])
    with pytest.raises(ValueError, match="the question has 486 tokens"):
        engine.ask(stream, "What is it? " * 60)
    assert stream.ended is None


def test_questions_leave_with_their_time_when_they_are_answered(weights, tokenizer):
    """Else a stream in which one is asked now and then would grow."""
    engine = make_engine(weights, slots=300, max_slots=300)
    settings = StreamSettings(wait_k=2, max_tail=2, memory=BUDGET)
    stream = engine.open(tokenizer, question=QUESTION, settings=settings, watches_on=True)
    frames, asked = make_frames(60, 3, GRID), 0
    for index, frame in enumerate(frames):
        engine.see(stream, frame)
        if index % 12 == 3:
            asked = engine.ask(stream, "And now?", interrupt=True)
        while engine.has_work:
            assert not any(isinstance(event, StreamEnded) for _, event in engine.step())
        book = stream._scheduler._track.book
        assert len(book.source_slots) <= BUDGET.sources + 40
        assert not asked or (book.frames == -1 - asked).any(), "the one that is being answered stays"
    assert asked == 5
    assert not (book.frames == -2).any()


SMALL = {"sources": 64, "words": 8, "first_words": 2}


@pytest.mark.parametrize(
    "memory",
    [
        StreamMem(**SMALL),
        PeakEnd(**SMALL),
        ReKV(**SMALL),
        ReKV(**SMALL, positions="contiguous"),
        Window(**SMALL, positions="contiguous"),
        Window(**SMALL, positions="apart", reanchor_at=20),
    ],
    ids=str,
)
def test_a_warm_engine_compiles_nothing_for_a_memory(weights, tokenizer, compilations, memory):
    """Not even when it drops something for the first time, reads keys for that, and turns what stays."""
    engine = make_engine(weights)
    engine.warm_up(GRID, memory)
    before = len(compilations)
    settings = StreamSettings(wait_k=2, max_tail=2, memory=memory, sampling=PENALIZED)
    *_, stream = watched(engine, tokenizer, settings, 30)
    book = stream._scheduler._track.book
    by_layer = isinstance(memory, StreamMem | ReKV)
    assert (book.frames.ndim == 3) == by_layer, "sources have been dropped, by layer"
    assert 0 not in book.frames[..., -16:]
    assert len(compilations) == before
