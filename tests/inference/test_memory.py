"""Memory policies: nothing changes while they drop nothing, and what they drop is as if it had been masked."""

import itertools
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import numpy as np
import pytest
from full_passes import QUESTION, make_frames
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from replay import Noting, no_keys, replayed_scores

from swjax.inference import BatchEngine, Mode, Request, Sampling, StreamSession, StreamSettings, run_streams
from swjax.inference import programs as programs_module
from swjax.inference.memory import KEEP_ALL, MEMORIES, TEXT, Book, Kept, Window, memory_of

TAIL = 6
FRAMES, GRID, SEED = 16, (4, 4), 2
COUNTS = (2, 1, 3, 0, 2, 2, 2, 0, 0, 3, 2, 1, 2, 2, 1)


@dataclass(frozen=True)
class Alternate:
    """Of more than so many frames every second one, with the newest; and of the words every third not."""

    most: int = 5

    def is_full(self, book):
        return len(np.unique(book.frames[book.frames != TEXT])) > self.most

    def keep(self, book, read):
        frames = np.unique(book.frames[book.frames != TEXT])[::-2]
        stays = (book.frames == TEXT) | np.isin(book.frames, frames)
        return Kept(np.flatnonzero(stays), np.flatnonzero(np.arange(len(book.words)) % 3 != 1))


@dataclass(frozen=True)
class Unlike:
    """In each layer and key head (2 and 2 of them) another part of the sources, and all words."""

    most: int = 70

    def is_full(self, book):
        return len(book.source_slots) > self.most

    def keep(self, book, read):
        count = len(book.source_slots)
        rows = [np.delete(np.arange(count), np.arange(20 + 5 * row, 36 + 5 * row)) for row in range(4)]
        return Kept(np.reshape(rows, (2, 2, -1)), np.arange(len(book.words)))


@pytest.fixture(scope="module")
def scores():
    """The scores [vocabulary] by which words are chosen, by the stream's seed and the word's number."""
    found: dict[tuple[int, int], np.ndarray] = {}
    sample = programs_module.sample

    def note(logits, seeds, spoken):
        found.update(
            {(seed, count): row for seed, count, row in zip(seeds.tolist(), spoken.tolist(), logits, strict=True)}
        )

    def noting_sample(logits, said, choices):
        jax.debug.callback(note, logits, choices.seed, choices.spoken)
        return sample(logits, said, choices)

    programs_module.programs_of.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs_module, "sample", noting_sample)
        yield found
    programs_module.programs_of.cache_clear()


def devices(*numbers):
    return NamedSharding(Mesh(np.array([jax.devices()[number] for number in numbers]), "copies"), PartitionSpec())


APART = devices(0), devices(1)


def make_engine(model, **changes):
    """Rows that are never made longer: one size serves all tests, so little is compiled."""
    sizes = {"rows": 2, "frame_units": 4, "slots": 256, "word_slots": 64, "max_slots": 256, "chunk_sizes": (16,)}
    return BatchEngine(model, **sizes, **changes)


def run(engine, tokenizer, settings, mode=None, *, count=FRAMES, also=()):
    requests = [Request(QUESTION, make_frames(count, SEED, GRID), settings, mode), *also]
    return {index: stream for index, stream, _ in run_streams(engine, tokenizer, requests)}


WAYS = [
    ("gdpe", Mode.PARALLEL, None),
    ("gdpe", Mode.PARALLEL, APART),
    ("gdpe", Mode.SEQUENTIAL, None),
    ("gipe", Mode.PARALLEL, None),
    ("gipe", Mode.PARALLEL, APART),
    ("interleave", Mode.INTERLEAVED, None),
    ("interleave", Mode.OFFLINE, None),
    ("ospe", Mode.OFFLINE, None),
]
WATCHED = Sampling(seed=7)
WINDOW = Window(frames=3, words=5, first_words=2)
BUDGET = "sources=60,words=8,first_words=2"


@pytest.mark.parametrize(
    ("variant", "mode", "placement", "memory"),
    [(*way, WINDOW) for way in WAYS]
    + [(*way, toy) for way in WAYS[:2] + WAYS[5:6] for toy in (Alternate(), Unlike())]
    + [
        (*WAYS[0], memory_of(f"{name}:{BUDGET}"))
        for name in ("uniform", "random", "infinipot_v", "keydiff", "ma_lmm", "streammem", "peak_end")
    ]
    + [(*WAYS[1], memory_of(f"streammem:{BUDGET}")), (*WAYS[5], memory_of(f"streammem:{BUDGET}"))]
    + [(*WAYS[0], memory_of(f"vsb:{BUDGET},buckets=4"))]
    + [(*way, memory_of(f"rekv:{BUDGET}")) for way in (*WAYS[:3], WAYS[5])],
    ids=lambda value: type(value).__name__ if hasattr(value, "keep") else "apart" if value is APART else str(value),
)
def test_what_is_dropped_is_as_if_masked(model, tokenizer, scores, variant, mode, placement, memory):
    if not isinstance(memory, Window | Alternate | Unlike):
        memory = Noting(memory)
    settings = StreamSettings(variant=variant, counts=COUNTS, max_tail=TAIL, memory=memory, sampling=WATCHED)
    other = StreamSettings(variant=variant, max_tail=TAIL)
    beside = Request(QUESTION, make_frames(3, 1, GRID), other, mode)
    scores.clear()
    streams = run(make_engine(model, placement=placement), tokenizer, settings, mode, also=[beside])
    jax.effects_barrier()
    counts = (0,) * FRAMES if mode is Mode.OFFLINE else (*COUNTS, 0)
    answer = streams[0].answer
    assert streams[0].fault is None
    assert len(answer) == sum(counts) + TAIL
    replayed = replayed_scores(model, tokenizer, make_frames(FRAMES, SEED, GRID), settings, counts, answer)
    assert replayed.argmax(axis=-1).tolist() == answer
    found = np.stack([scores[WATCHED.seed, index] for index in range(len(answer))])
    np.testing.assert_allclose(found, replayed, atol=1e-4)
    keep_all = replace(settings, memory=KEEP_ALL)
    whole = replayed_scores(model, tokenizer, make_frames(FRAMES, SEED, GRID), keep_all, counts, answer)
    assert np.abs(whole - replayed).max() > 0.01, "what is dropped makes no difference, so this test shows nothing"


@pytest.mark.parametrize(("variant", "mode", "placement"), [*WAYS[:3], WAYS[5]])
def test_while_nothing_is_dropped_nothing_changes(model, tokenizer, scores, variant, mode, placement):
    """The answer, all scores and the passes, bit by bit."""
    found = []
    for memory in (KEEP_ALL, Window(frames=FRAMES, words=sum(COUNTS) + TAIL)):
        settings = StreamSettings(variant=variant, counts=COUNTS, max_tail=TAIL, memory=memory, sampling=WATCHED)
        scores.clear()
        engine = make_engine(model, placement=placement)
        stream = run(engine, tokenizer, settings, mode)[0]
        jax.effects_barrier()
        words = [scores[WATCHED.seed, index].tobytes() for index in range(len(stream.answer))]
        found.append((stream.answer, words, engine.passes, stream.tally.tokens_computed))
    assert found[0] == found[1]


def test_set_back_together_changes_no_score(model, tokenizer, scores):
    """Over two hundred words, in which ids are set back many times."""
    found = []
    for positions in ("kept", "together"):
        memory = replace(WINDOW, positions=positions, reanchor_at=40)
        scores.clear()
        engine = make_engine(model)
        settings = StreamSettings(wait_k=2, max_tail=2, memory=memory, sampling=WATCHED)
        assert watch(engine, tokenizer, settings, None, 100) == ("token_limit", 200)
        jax.effects_barrier()
        found.append(np.stack([scores[WATCHED.seed, index] for index in range(200)]))
    np.testing.assert_allclose(*found, atol=1e-3)
    assert (found[0].argmax(axis=1) == found[1].argmax(axis=1)).all()


@pytest.mark.parametrize(("variant", "memory"), [("gdpe", WINDOW), ("gipe", Unlike()), ("interleave", WINDOW)])
def test_a_session_forgets_alike(model, weights, tokenizer, variant, memory):
    settings = StreamSettings(variant=variant, counts=COUNTS, max_tail=TAIL, memory=memory)
    session = StreamSession(weights, tokenizer, question=QUESTION, settings=settings)
    frames, counts = make_frames(FRAMES, SEED, GRID), (*COUNTS, 0)
    list(session.run(frames))
    scores = replayed_scores(model, tokenizer, frames, settings, counts, session.answer)
    assert scores.argmax(axis=-1).tolist() == session.answer
    assert len(session.answer) == sum(counts) + TAIL


def watch(engine, tokenizer, settings, mode, frames):
    """Hand so many frames over, one when nothing of the one before is left to do."""
    stream = engine.open(tokenizer, question=QUESTION, settings=settings, mode=mode)
    for index, frame in zip(range(frames), itertools.cycle(make_frames(8, SEED, GRID)), strict=False):
        engine.see(stream, frame, last=index == frames - 1)
        while engine.has_work:
            engine.step()
        if stream.ended:
            break
    return stream.ended, len(stream.answer)


@pytest.mark.parametrize(("variant", "mode", "placement"), [WAYS[0], WAYS[1], WAYS[5]])
def test_a_stream_without_end_stays_in_its_row(model, tokenizer, scores, variant, mode, placement):
    engine = make_engine(model, placement=placement)
    before = [lane.slots for lane in engine._lanes]
    memory = Window(frames=4, words=8, first_words=2)
    settings = StreamSettings(variant=variant, wait_k=2, max_tail=2, memory=memory)
    assert watch(engine, tokenizer, settings, mode, 250) == ("token_limit", 500)
    assert [lane.slots for lane in engine._lanes] == before


def test_a_stream_that_keeps_all_ends_where_its_row_is_full(model, tokenizer, scores):
    """The control of the test above."""
    ended, words = watch(make_engine(model), tokenizer, StreamSettings(wait_k=2, max_tail=2), None, 250)
    assert ended == "capacity"
    assert words < 100


def test_a_policy_from_outside(model, tokenizer, scores, monkeypatch):
    monkeypatch.setitem(MEMORIES, "alternate", Alternate)
    assert memory_of("alternate:most=4") == Alternate(4)
    with pytest.raises(ValueError, match=r"choose one of keep_all, window, .*, alternate$"):
        memory_of("no")
    settings = StreamSettings(counts=COUNTS, max_tail=TAIL, memory=memory_of("alternate:most=4"))
    answer = run(make_engine(model), tokenizer, settings)[0].answer
    counts = (*COUNTS, 0)
    replayed = replayed_scores(model, tokenizer, make_frames(FRAMES, SEED, GRID), settings, counts, answer)
    assert replayed.argmax(axis=-1).tolist() == answer


@dataclass(frozen=True)
class Asks:
    """Keeps what its keys say; here a policy that reads them and drops what has the smallest."""

    most: int = 70
    read: ClassVar[list] = []

    def is_full(self, book):
        return len(book.source_slots) > self.most

    def keep(self, book, read):
        stored = read()
        self.read.append((stored.keys.shape, stored.values.shape, len(book.source_slots)))
        norms = np.linalg.norm(np.asarray(stored.keys), axis=-1)
        kept = np.sort(np.argsort(norms, axis=-1)[..., -self.most // 2 :], axis=-1)
        return Kept(kept, np.arange(len(book.words)))


def test_peak_end_knows_how_likely_the_words_were(model, tokenizer, scores):
    """At its first compaction, by the scores with which they were chosen; some frames have no words."""
    policy = memory_of("peak_end:sources=60,words=64")
    notes: dict[int, float] = {}

    class First(Noting):
        def keep(self, book, read):
            kept = super().keep(book, read)
            notes.update(book.notes) if len(self.kept) == 1 else None
            return kept

    settings = StreamSettings(counts=COUNTS, max_tail=TAIL, memory=First(policy), sampling=WATCHED)
    scores.clear()
    answer = run(make_engine(model), tokenizer, settings)[0].answer
    jax.effects_barrier()
    after = np.repeat(np.arange(len(COUNTS)), COUNTS)
    nats = [-float(jax.nn.log_softmax(scores[WATCHED.seed, index])[answer[index]]) for index in range(len(after))]
    assert len(notes) >= 3
    for frame, noted in notes.items():
        np.testing.assert_allclose(noted, np.mean(np.array(nats)[after == frame]), atol=1e-4)


def test_a_policy_may_read_keys_and_values(model, tokenizer, scores):
    memory = Asks()
    memory.read.clear()
    stream = run(make_engine(model), tokenizer, StreamSettings(counts=COUNTS, max_tail=TAIL, memory=memory))[0]
    assert (stream.fault, stream.ended) == (None, "token_limit")
    text = model.config.text
    assert memory.read
    for keys, values, count in memory.read:
        assert keys == values == (text.num_layers, text.num_kv_heads, count, text.head_dim)


@dataclass(frozen=True)
class Wrong:
    """Keeps what is not there."""

    sources: tuple[int, ...]

    def is_full(self, book):
        return len(book.source_slots) > 50

    def keep(self, book, read):
        return Kept(np.array(self.sources), np.arange(len(book.words)))


@pytest.mark.parametrize("sources", [(0, 1000), (2, 1), (-1, 2), (0.5, 1.0)])
def test_a_policy_that_is_wrong_ends_its_stream_alone(model, tokenizer, scores, sources):
    settings = StreamSettings(counts=COUNTS, max_tail=TAIL)
    beside = Request(QUESTION, make_frames(FRAMES, 1, GRID), settings)
    wrong = replace(settings, memory=Wrong(sources))
    streams = run(make_engine(model), tokenizer, wrong, also=[beside])
    assert streams[0].ended == "fault"
    assert "the memory policy must keep sources by" in str(streams[0].fault)
    assert streams[1].ended == "token_limit"


def test_a_window_keeps_text_first_words_and_the_newest():
    book = Book(
        frames=np.array([TEXT, TEXT, 0, 0, 1, 1, 2, 2, 4, TEXT], np.int32),
        words=np.arange(-2, 9, dtype=np.int32),
        source_slots=np.arange(10, dtype=np.int32),
        word_slots=-1 - np.arange(11, dtype=np.int32),
    )
    assert not Window(frames=4, words=100).is_full(book)
    assert not Window(frames=3, words=100).is_full(book), "an eighth more, and at least one, is let be"
    window = Window(frames=2, words=3, first_words=2)
    assert window.is_full(book)
    kept = window.keep(book, no_keys)
    assert book.frames[kept.sources].tolist() == [TEXT, TEXT, 2, 2, 4, TEXT]
    assert book.words[kept.words].tolist() == [-2, -1, 0, 1, 6, 7, 8]
    assert Window(frames=99, words=5, first_words=2).is_full(book)
    assert not Window(frames=99, words=6, first_words=2).is_full(book)


def test_policies_have_names_and_numbers():
    assert memory_of("keep_all") == KEEP_ALL
    assert memory_of("window") == Window()
    assert memory_of("window:frames=32,words=256") == Window(frames=32, words=256)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown memory ''; choose one of keep_all, window"),
        ("Window", "unknown memory 'Window'"),
        (
            "window:frame=3",
            "first_words, frames, positions, reanchor_at, written as window:sources=8, got 'frame=3'",
        ),
        ("window:frames", "got 'frames'"),
        ("window:frames=3,", "got ''"),
        ("window:frames=3,frames=4", "frames is given twice"),
        ("window:frames=-1", "a window's frames must be a whole number from 1"),
        ("window:frames=1.5", "frames of memory window must be of type int, got '1.5'"),
        ("window:frames=0", "a window's frames must be a whole number from 1"),
        ("window:frames=9999999999", "a window's frames must be a whole number from 1"),
        ("keep_all:frames=1", "memory keep_all takes no numbers"),
    ],
)
def test_what_is_no_policy_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        memory_of(text)


def test_where_nothing_can_be_dropped_it_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="mode recompute runs all again at each frame, so nothing may be dropped"):
        make_engine(model).open(
            tokenizer, question=QUESTION, settings=StreamSettings(memory=WINDOW), mode=Mode.RECOMPUTE
        )
    with pytest.raises(ValueError, match="memory must be a policy"):
        StreamSettings(memory=Window)
