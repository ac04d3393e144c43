"""Questions in mid-stream: streaming against one full forward pass over what docs/differences.md says is seen."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from full_passes import QUESTION, make_frames
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from replay import ROW, forward

from swjax.inference import (
    BatchEngine,
    FrameSeen,
    Mode,
    QuestionSeen,
    StreamEnded,
    StreamSession,
    StreamSettings,
    TokenSpoken,
)
from swjax.inference.memory import KEEP_ALL, Window
from swjax.inference.prompt import encode_prompt
from swjax.streaming import SpecialTokens

GRID = (4, 4)
UNITS = (2, 2)
LATER = ("What is red?", "And now?")


def asked_ids(tokenizer, special, text):
    """The user's message ends, and another one has the question and the video that follows."""
    user, words = (tokenizer.encode(part, add_special_tokens=False) for part in ("user", text))
    return [*special.trailer, special.im_start, *user, special.newline, *words, special.vision_start]


class Tape:
    """All that was stored, in the order of time: what each token is, and what each target sees of the sources."""

    def __init__(self, special, prompt):
        self.special, self.line, self.sees = special, [], {}
        self.spoken, self.open, self.piece, self.drops = [], None, 0, []
        self.source(list(prompt), 0)

    def source(self, ids, frame=None):
        self.line += [(token, False, frame) for token in ids]
        self.piece = 0 if frame is None else self.piece

    def frame(self):
        self.line += [(self.special.video_pad, False, (self.piece, *cell)) for cell in np.ndindex(UNITS)]
        self.piece += 1

    def target(self, token):
        """Put a target in; the one before it, if it has waited, sees what has arrived by now."""
        if self.open is not None:
            self.sees[self.open] = len(self.line)
        self.open = len(self.line)
        self.line.append((token, True, None))

    def begin(self):
        for token in self.special.prefix:
            self.target(token)

    def say(self, token):
        if self.open is not None:
            self.sees[self.open] = len(self.line)
        self.spoken.append((len(self.line), token))
        self.open = len(self.line)
        self.line.append((token, True, None))

    def end(self, token):
        self.say(token)
        self.target(self.special.newline)

    def arrays(self, variant, stride):
        """Ids, positions [3, N] and who sees whom [N, N], in the order of time."""
        is_target = np.array([target for _, target, _ in self.line])
        index = np.arange(len(self.line))
        seen = index <= index[:, None]
        ids = np.zeros((3, len(self.line)), np.int32)
        next_source = next_target = start = 0
        for number, (_, target, cell) in enumerate(self.line):
            one_count = variant == "interleave"
            if target and not one_count:
                ids[:, number], next_target = next_target, next_target + 1
                continue
            if not isinstance(cell, tuple):
                ids[:, number], next_source = next_source, next_source + 1
                continue
            frame, row, column = cell
            if (row, column) == (0, 0) and (one_count or frame == 0):
                start = next_source
            ids[:, number] = start + (0 if one_count else int(frame * stride)), start + row, start + column
            next_source = max(next_source, ids[:, number].max() + 1)
        if variant != "interleave":
            seen[~is_target] &= ~is_target
            for number, stop in self.sees.items():
                seen[number] = np.where(is_target, index <= number, index < stop)
        for dropped, computed in self.drops:
            seen[np.ix_(~np.isin(index, computed), dropped)] = False
        return np.array([token for token, *_ in self.line], np.int32), ids, seen

    def drop(self, book, kept):
        """A memory keeps these of all that is stored: what is computed later does not see the rest."""
        gone = np.concatenate([np.zeros(0, int), *(dropped for dropped, _ in self.drops)])
        here = [index for index in range(len(self.line)) if index not in gone]
        sources = np.array([index for index in here if not self.line[index][1]])
        words = np.array([index for index in here if self.line[index][1]])[: len(book.words)]
        assert (len(sources), len(words)) == (len(book.frames), len(book.words))
        dropped = np.concatenate([np.delete(sources, kept.sources), np.delete(words, kept.words)])
        self.drops.append((dropped, np.concatenate([gone, sources, words])))

    def scores(self, model, frames, variant):
        """Scores by which each spoken token would be chosen."""
        tokens, ids, seen = self.arrays(variant, model.config.vision.tokens_per_second)
        length, text = len(tokens), model.config.text
        masks = np.zeros((text.num_layers, text.num_kv_heads, ROW, ROW), bool)
        masks[..., :length, :length] = seen
        row, positions = np.zeros((1, ROW), np.int32), np.zeros((3, 1, ROW), np.int32)
        row[0, :length], positions[:, 0, :length] = tokens, ids
        patches = np.concatenate([frame.patches for frame in frames])[None]
        grid = np.array([[(len(frames), *frames[0].grid_hw)]])
        found = np.asarray(forward(model)(row, positions, masks, patches, grid))[0]
        is_target = np.array([target for _, target, _ in self.line])
        before = [
            place - 1 if variant == "interleave" else np.flatnonzero(is_target[:place])[-1] for place, _ in self.spoken
        ]
        return found[before]


class Watched:
    """A session and the tape of it."""

    def __init__(self, weights, tokenizer, settings):
        self.special = SpecialTokens.from_tokenizer(tokenizer)
        self.session = StreamSession(weights, tokenizer, question=QUESTION, settings=settings)
        self.tape = Tape(self.special, encode_prompt(tokenizer, self.special, QUESTION))
        self.tokenizer, self.stops, self.events = tokenizer, settings.stop_tokens, []
        self.waiting, self.answering, self.fresh, self.asked = [], 0, True, 0

    def see(self, frame):
        self.session.see(frame)
        self.tape.frame()
        if self.fresh:
            self.tape.begin()
        self.fresh = False

    def ask(self, text, *, interrupt=False):
        self.asked += 1
        assert self.session.ask(text, interrupt=interrupt).index == self.asked
        self.tape.source(asked_ids(self.tokenizer, self.special, text))
        if interrupt or self.answering is None:
            self.answering = self.asked
            self.tape.begin()
        else:
            self.waiting.append(self.asked)

    def speak(self, count):
        """Speak; where no word comes, the answer has ended, and the next one begins."""
        for _ in range(count):
            (event,) = list(self.session.speak(1)) or [None]
            if event is not None:
                assert event.question == self.answering
                self.events.append(event)
                self.tape.say(event.token_id)
                continue
            if self.answering is None:
                return
            self.tape.end(self.stops[0])
            self.answering = self.waiting.pop(0) if self.waiting else None
            if self.answering is not None:
                self.tape.begin()
            assert self.session.ended == (self.answering is None)

    def check(self, model, frames, variant):
        scores = self.tape.scores(model, frames, variant)
        assert scores.argmax(axis=-1).tolist() == [token for _, token in self.tape.spoken]
        return scores


class Told:
    """A window that tells a tape what it drops."""

    def __init__(self, window):
        self.window, self.tape = window, None

    def is_full(self, book):
        return self.window.is_full(book)

    def keep(self, book, read):
        kept = self.window.keep(book, read)
        self.tape.drop(book, kept)
        return kept


VARIANTS = ["gdpe", "interleave"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("interrupt", [False, True], ids=["queue", "interrupt"])
def test_words_with_questions_equal_a_full_pass(model, weights, tokenizer, variant, interrupt):
    frames = make_frames(4, 2, GRID)

    def watch(stop=None):
        settings = StreamSettings(variant=variant, stop_tokens=() if stop is None else (stop,))
        watched = Watched(weights, tokenizer, settings)
        watched.see(frames[0])
        watched.speak(2)
        watched.ask(LATER[0], interrupt=interrupt)
        watched.speak(3)
        watched.see(frames[1])
        watched.see(frames[2])
        watched.ask(LATER[1])
        watched.speak(4)
        watched.see(frames[3])
        watched.speak(3)
        return watched

    plain = watch()
    plain.check(model, frames, variant)
    assert {event.question for event in plain.events} == ({0, 1} if interrupt else {0})
    counts = [event.token_id for event in plain.events]
    stop = next(token for index, token in enumerate(counts) if index > 2 and counts.index(token) == index)
    ended = watch(stop)
    ended.check(model, frames, variant)
    assert max(event.question for event in ended.events) == (2 if interrupt else 1)
    assert [event.token_id for event in ended.events][: counts.index(stop)] == counts[: counts.index(stop)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_words_with_questions_and_a_bounded_memory_equal_a_full_pass(model, weights, tokenizer, variant):
    """With a mask that hides from each query what had been dropped before it was computed."""
    frames, memory = make_frames(5, 2, GRID), Told(Window(frames=2, words=6, first_words=2))
    watched = Watched(weights, tokenizer, StreamSettings(variant=variant, memory=memory))
    memory.tape = watched.tape
    for number, frame in enumerate(frames):
        watched.see(frame)
        watched.speak(2)
        if number in (1, 3):
            watched.ask(LATER[number // 2], interrupt=True)
            watched.speak(2)
    scores = watched.check(model, frames, variant)
    assert {event.question for event in watched.events} == {0, 1, 2}
    assert len(watched.tape.drops) > 1
    watched.tape.drops.clear()
    whole = watched.tape.scores(model, frames, variant)
    assert np.abs(whole - scores).max() > 0.01, "what is dropped makes no difference, so this test shows nothing"


def devices(*numbers):
    return NamedSharding(Mesh(np.array([jax.devices()[number] for number in numbers]), "copies"), PartitionSpec())


APART = devices(0), devices(1)
WINDOW = Window(frames=2, words=4, first_words=2)
TAIL = 6
SCRIPT = (None, LATER[0], None, None, LATER[1], None)
"""Frames (None) and questions."""
WAYS = [
    ("gdpe", Mode.PARALLEL, None),
    ("gdpe", Mode.PARALLEL, APART),
    ("gdpe", Mode.SEQUENTIAL, None),
    ("gipe", Mode.PARALLEL, None),
    ("ospe", Mode.PARALLEL, None),
    ("interleave", Mode.INTERLEAVED, None),
    ("gdpe", Mode.RECOMPUTE, None),
]


def by_session(weights, tokenizer, settings):
    """Words with the question of each, where each item comes when the words about the one before have been spoken."""
    session = StreamSession(weights, tokenizer, question=QUESTION, settings=settings)
    frames, spoken = iter(make_frames(4, 2, GRID)), []
    for index, text in enumerate(SCRIPT):
        last = index == len(SCRIPT) - 1
        if text is None:
            session.see(next(frames), last=last)
        else:
            session.ask(text)
        spoken += session.speak(settings.words_after(index, last=last))
    return [(event.token_id, event.question, event.after_frame) for event in spoken], session.ended


@pytest.mark.parametrize(
    ("variant", "mode", "placement", "memory"),
    [(*way, KEEP_ALL) for way in WAYS] + [(*way, WINDOW) for way in WAYS[1::4]],
    ids=lambda value: type(value).__name__ if hasattr(value, "keep") else "apart" if value is APART else str(value),
)
def test_a_batch_answers_as_a_session_does(model, weights, tokenizer, variant, mode, placement, memory):
    """All that comes is handed over at once, beside a stream that is asked nothing."""
    settings = StreamSettings(variant=variant, wait_k=2, max_tail=TAIL, memory=memory)
    plain, _ = by_session(weights, tokenizer, settings)
    assert {question for _, question, _ in plain} == {0}
    tokens = [token for token, *_ in plain]
    stop = next(token for index, token in enumerate(tokens) if index > 3 and tokens.index(token) == index)
    stopping = replace(settings, stop_tokens=(stop,))
    engine = BatchEngine(model, rows=2, frame_units=4, slots=256, chunk_sizes=(16,), placement=placement)
    for chosen in (settings, stopping):
        expected, all_answered = by_session(weights, tokenizer, chosen)
        alone = engine.open(tokenizer, question=QUESTION, settings=settings, mode=mode)
        stream = engine.open(tokenizer, question=QUESTION, settings=chosen, mode=mode)
        frames = make_frames(4, 2, GRID)
        for number, text in enumerate(SCRIPT):
            if text is None:
                frame, last = frames.pop(0), number == len(SCRIPT) - 1
                engine.see(stream, frame, last=last)
                engine.see(alone, frame, last=last)
            else:
                engine.ask(stream, text)
        events = []
        while engine.has_work:
            events += [event for one, event in engine.step() if one is stream]
        spoken = [event for event in events if isinstance(event, TokenSpoken)]
        assert [(event.token_id, event.question, event.after_frame) for event in spoken] == expected
        assert [event.index for event in events if isinstance(event, QuestionSeen)] == [1, 2]
        assert isinstance(events[-1], StreamEnded)
        assert events[-1].reason == ("end_token" if all_answered else "token_limit")
        assert alone.ended == "token_limit"
        assert len(alone.answer) == 3 * 2 + TAIL
    assert max(question for _, question, _ in expected) > 0


@pytest.mark.parametrize("variant", ["gdpe", "interleave"])
def test_a_stream_may_watch_on_when_all_is_answered(model, weights, tokenizer, variant):
    frames = make_frames(4, 2, GRID)
    settings = StreamSettings(variant=variant, wait_k=3)
    session = StreamSession(weights, tokenizer, question=QUESTION, settings=settings)
    session.see(frames[0])
    stop = [event.token_id for event in session.speak(2)][1]
    settings = replace(settings, stop_tokens=(stop,))
    expected = StreamSession(weights, tokenizer, question=QUESTION, settings=settings)
    engine = BatchEngine(model, rows=1, frame_units=4, slots=256, chunk_sizes=(16,))
    stream = engine.open(tokenizer, question=QUESTION, settings=settings, watches_on=True)
    spoken = []
    for item in (frames[0], frames[1], LATER[0], frames[2]):
        if isinstance(item, str):
            expected.ask(item)
            engine.ask(stream, item)
        else:
            expected.see(item)
            engine.see(stream, item)
        spoken += [(event.token_id, event.question) for event in expected.speak(3)]
        while engine.has_work:
            engine.step()
        assert stream.answer == [token for token, _ in spoken]
        assert stream.ended is None
        assert stream.answered == expected.ended
    assert {question for _, question in spoken} == {0, 1}
    assert stream.answer[1:], "the second question has no answer"
    engine.close(stream)
    silent = engine.open(tokenizer, question=QUESTION, settings=settings, watches_on=True)
    for number, frame in enumerate(frames):
        engine.see(silent, frame, last=number == 3)
    events = []
    while engine.has_work:
        events += [event for _, event in engine.step()]
    assert silent.tally.frames_seen == 4
    assert silent.answer == [spoken[0][0]]
    assert events[-1] == StreamEnded("end_token", silent.text, events[-1].wall_s)


def test_no_question_is_dropped_with_the_frames_around_it(model, tokenizer):
    engine = BatchEngine(model, rows=1, frame_units=4, slots=256, chunk_sizes=(16,))
    settings = StreamSettings(wait_k=2, max_tail=TAIL)
    stream = engine.open(tokenizer, question=QUESTION, settings=settings, when_behind="drop")
    for number, frame in enumerate(make_frames(5, 2, GRID)):
        engine.see(stream, frame, last=number == 4)
        if number == 1:
            engine.ask(stream, LATER[0])
    events = []
    while engine.has_work:
        events += [event for _, event in engine.step()]
    arrived = [(type(event), event.index) for event in events if isinstance(event, FrameSeen | QuestionSeen)]
    assert arrived == [(FrameSeen, 1), (QuestionSeen, 1), (FrameSeen, 4)]
    assert stream.tally.frames_dropped == 3
    assert stream.ended == "token_limit"


def test_what_cannot_be_asked_is_refused(model, weights, tokenizer):
    session = StreamSession(weights, tokenizer, question=QUESTION)
    frames = make_frames(2, 2, GRID)
    with pytest.raises(ValueError, match="no frame has come yet"):
        session.ask("Why?")
    session.see(frames[0])
    for bad, message in (
        ("", "empty"),
        ("  ", "empty"),
        (None, "must be text"),
        ("<|im_end|>", "special token"),
        ("\ud83d", "half a character"),
    ):
        with pytest.raises(ValueError, match=message):
            session.ask(bad)
    assert session.ask("Why?").index == 1, "what was refused has no number"
    session.see(frames[1], last=True)
    with pytest.raises(ValueError, match="an answer is under way"):
        session.ask("And now?")
    engine = BatchEngine(model, rows=1, frame_units=4, slots=256, chunk_sizes=(16,))
    stream = engine.open(tokenizer, question=QUESTION, settings=StreamSettings(counts=(1, 1)))
    engine.see(stream, frames[0])
    engine.ask(stream, "Why?")
    engine.see(stream, frames[1])
    with pytest.raises(ValueError, match="has counts for 2 frames, but frame 2"):
        engine.ask(stream, "And now?")
    engine.close(stream)
    with pytest.raises(ValueError, match=r"has ended \(closed\)"):
        engine.ask(stream, "And now?")
