"""Batches of streams, in every mode, against full forward passes over the growing training layout."""

import collections
import gc

import jax
import numpy as np
import pytest
from full_passes import QUESTION, decode_frames, make_frames
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from obvious_stream import ObviousStream

from swjax.inference import (
    BatchEngine,
    FrameSeen,
    Mode,
    Request,
    Sampling,
    StreamEnded,
    StreamSession,
    StreamSettings,
    TokenSpoken,
    run_streams,
)
from swjax.inference import programs as programs_module
from swjax.inference.lane import Lane
from swjax.streaming import Variant, random_schedule

VARIANTS = tuple(Variant)
MODES = [(variant, mode) for variant in VARIANTS for mode in Mode if mode.allows(variant)]
TAIL = 5
SEEDS = (1, 0, 3)
# Streams of unlike length, two frame sizes and schedules with zeros; the third begins when another has ended.
GRIDS = ((4, 6), (4, 4), (4, 6))
LENGTHS = (6, 3, 1)


def devices(*numbers: int) -> NamedSharding:
    """A mesh of some devices, with all of everything on each."""
    return NamedSharding(Mesh(np.array([jax.devices()[number] for number in numbers]), "copies"), PartitionSpec())


APART = devices(0), devices(1, 2)


def make_engine(model, **changes) -> BatchEngine:
    return BatchEngine(model, **{"rows": 2, "frame_units": 6, "slots": 256, "chunk_sizes": (4, 16), **changes})


def settings_of(variant: str, stream: int) -> StreamSettings:
    counts = tuple(random_schedule(LENGTHS[stream], low=0, high=4, seed=(5, stream)))
    return StreamSettings(variant=variant, counts=counts if stream else None, max_tail=TAIL)


@pytest.fixture(scope="module")
def expected(model, tokenizer):
    """Answers by full passes, by variant; where the whole video comes first, as if it had no words on its way."""
    found = {}

    def answers(variant: Variant, *, offline: bool) -> list[list[int]]:
        if (variant, offline) not in found:
            found[variant, offline] = [one(variant, stream, offline) for stream in range(len(LENGTHS))]
        return found[variant, offline]

    def one(variant: Variant, stream: int, offline: bool) -> list[int]:
        settings = settings_of(variant, stream)
        words = [settings.words_after(frame) for frame in range(LENGTHS[stream] - 1)]
        if offline:
            words = [0] * len(words)
        whole = StreamSettings(variant=variant, counts=(*words, 0), max_tail=TAIL)
        frames = make_frames(LENGTHS[stream], SEEDS[stream], GRIDS[stream])
        return decode_frames(model, tokenizer, frames, whole, sum(words) + TAIL)

    return answers


def run_all(engine, tokenizer, variant, mode):
    requests = [
        Request(QUESTION, make_frames(length, SEEDS[index], GRIDS[index]), settings_of(variant, index), mode)
        for index, length in enumerate(LENGTHS)
    ]
    events = collections.defaultdict(list)
    streams = {}
    for index, stream, event in run_streams(engine, tokenizer, requests):
        events[index].append(event)
        streams[index] = stream
    assert engine.free == 2
    return [streams[index] for index in range(len(LENGTHS))], events


@pytest.mark.parametrize(
    ("variant", "mode", "placement"),
    [(*both, None) for both in MODES] + [(*both, APART) for both in MODES if both[1] is Mode.PARALLEL],
    ids=lambda value: "apart" if value is APART else str(value),
)
def test_all_engines_equal_full_passes(model, tokenizer, expected, variant, mode, placement):
    offline = mode is Mode.OFFLINE
    streams, events = run_all(make_engine(model, placement=placement), tokenizer, variant, mode)
    answers = expected(variant, offline=offline)
    assert [stream.answer for stream in streams] == answers
    assert len({tuple(answer[:3]) for answer in answers}) == 3, "the answers do not depend on the videos"
    for index, stream in enumerate(streams):
        spoken = [event for event in events[index] if isinstance(event, TokenSpoken)]
        assert [event.token_id for event in spoken] == stream.answer
        assert [event.index for event in events[index] if isinstance(event, FrameSeen)] == list(range(LENGTHS[index]))
        words = [settings_of(variant, index).words_after(frame) for frame in range(LENGTHS[index] - 1)]
        words = [0] * len(words) if offline else words
        assert [event.after_frame for event in spoken] == np.repeat(range(LENGTHS[index]), [*words, TAIL]).tolist()
        assert isinstance(events[index][-1], StreamEnded)
        assert events[index][-1].text == stream.text
        assert stream.ended == "token_limit"


@pytest.mark.parametrize("placement", [None, APART], ids=["together", "apart"])
def test_each_frame_is_encoded_once_and_each_position_computed_once(model, tokenizer, placement, monkeypatch):
    encoded, written, features = [], collections.Counter(), collections.Counter()
    encode, advance = Lane.encode, Lane.advance

    def counted_encode(self, row, place, patches, grid_hw):
        encoded.append(patches.tobytes())
        encode(self, row, place, patches, grid_hw)

    def counted_advance(self, tokens, size, speaking, choices):
        for row in tokens.values():
            written.update(row.tokens.slots.tolist())
            features.update((row.features >= 0).tolist())
        return advance(self, tokens, size, speaking, choices)

    monkeypatch.setattr(Lane, "encode", counted_encode)
    monkeypatch.setattr(Lane, "advance", counted_advance)
    engine, frames = make_engine(model, placement=placement), make_frames(7, 0)
    request = Request(QUESTION, frames, StreamSettings(max_tail=TAIL))
    stream = [stream for _, stream, _ in run_streams(engine, tokenizer, [request])][-1]
    assert encoded == [frame.patches.tobytes() for frame in frames]
    assert features[True] == 7 * 6
    assert set(written.values()) == {1}
    prefix = 3
    words = len(stream.answer)
    assert min(written) == -(prefix + words - 1), "the last word is spoken and never fed"
    assert stream.tally.tokens_computed == sum(written.values()) == max(written) - min(written) + 1
    assert stream.tally.frames_encoded == 7


def test_recomputing_encodes_all_frames_again_at_each(model, tokenizer):
    (stream, _, _), _ = run_all(make_engine(model), tokenizer, "gdpe", Mode.RECOMPUTE)
    assert stream.tally.frames_encoded == 1 + 2 + 3 + 4 + 5 + 6


def test_frames_ride_along_with_words(model, tokenizer, monkeypatch):
    """Once the first word is spoken every pass speaks; one thing at a time takes one pass more a frame."""
    advance = Lane.advance
    spoken: list[bool] = []

    def noted_advance(self, tokens, size, speaking, choices):
        spoken.append(bool(speaking))
        return advance(self, tokens, size, speaking, choices)

    monkeypatch.setattr(Lane, "advance", noted_advance)
    silent = {}
    for mode in (Mode.PARALLEL, Mode.SEQUENTIAL):
        spoken.clear()
        request = Request(QUESTION, make_frames(9, 0), StreamSettings(max_tail=TAIL), mode)
        list(run_streams(make_engine(model), tokenizer, [request]))
        after = spoken[spoken.index(True) :]
        assert sum(after) == 8 * 3 + TAIL
        silent[mode] = len(after) - sum(after)
    assert silent == {Mode.PARALLEL: 0, Mode.SEQUENTIAL: 8}


def _passes_compiled():
    found = gc.get_objects()
    return sum(
        one.advance._cache_size() + one.encode._cache_size() for one in found if type(one) is programs_module.Programs
    )


def test_nothing_is_compiled_twice(model, tokenizer):
    engine = make_engine(model)
    engine.warm_up((4, 6))
    compiled = _passes_compiled()
    for seed, variant in enumerate(("ospe", "interleave", "gipe")):
        counts = tuple(random_schedule(9, low=0, high=6, seed=seed))
        warm = Sampling(temperature=1.0, seed=seed)
        settings = StreamSettings(counts=counts, variant=variant, sampling=warm, max_tail=9)
        list(run_streams(engine, tokenizer, [Request(f"{seed}?" * seed, make_frames(9, seed), settings)] * 3))
    assert _passes_compiled() == compiled


@pytest.mark.parametrize("placement", [None, APART], ids=["together", "apart"])
def test_rows_grow_at_both_ends_and_refuse_beyond_their_limit(model, tokenizer, placement):
    settings = StreamSettings(wait_k=4, max_tail=10)
    frames = make_frames(9, 1)
    obvious = ObviousStream(model, tokenizer, question=QUESTION, settings=settings)
    list(obvious.run(frames))

    def run(max_slots: int):
        batch = make_engine(model, slots=64, max_slots=max_slots, chunk_sizes=(16,), placement=placement)
        requests = [Request(QUESTION, frames, settings), Request(QUESTION, frames[:2], settings)]
        events = run_streams(batch, tokenizer, requests)
        return [stream for _, stream, event in events if isinstance(event, StreamEnded)]

    short, long = run(2048)
    assert long.answer == obvious.answer
    other, refused = run(144)
    assert refused.ended == "capacity"
    assert 0 < len(refused.answer) < len(long.answer)
    assert refused.answer == long.answer[: len(refused.answer)]
    assert other.answer == short.answer
    assert other.ended == "token_limit"


def test_sampled_answers_equal_the_obvious_stream_s_whoever_else_speaks(model, tokenizer):
    choices = [
        Sampling(temperature=1.5, top_p=0.9, seed=1),
        Sampling(temperature=1.5, top_p=0.9, seed=2),
        Sampling(repetition_penalty=1.15),
    ]
    frames = make_frames(4, 0)
    settings = [StreamSettings(max_tail=8, sampling=choice) for choice in choices]
    streams = {}
    requests = [Request(QUESTION, frames, one) for one in settings]
    for index, stream, _ in run_streams(make_engine(model), tokenizer, requests):
        streams[index] = stream
    for index, one in enumerate(settings):
        obvious = ObviousStream(model, tokenizer, question=QUESTION, settings=one)
        list(obvious.run(frames))
        assert streams[index].answer == obvious.answer
    assert streams[0].answer != streams[1].answer


def test_a_stop_token_ends_one_stream_and_frees_its_row(model, tokenizer):
    frames = make_frames(5, 0)
    plain = [stream for _, stream, _ in run_streams(make_engine(model), tokenizer, [Request(QUESTION, frames)])][-1]
    stop = plain.answer[4]
    first = plain.answer.index(stop)
    engine = make_engine(model)
    stopping = engine.open(tokenizer, question=QUESTION, settings=StreamSettings(stop_tokens=(stop,)))
    going_on = engine.open(tokenizer, question=QUESTION)
    with pytest.raises(ValueError, match="all 2 rows are taken"):
        engine.open(tokenizer, question=QUESTION)
    for index, frame in enumerate(frames):
        for stream in (stopping, going_on):
            engine.see(stream, frame, last=index == len(frames) - 1)
    while engine.has_work and len(going_on.answer) < 14:
        engine.step()
    assert stopping.ended == "end_token"
    assert stopping.answer == plain.answer[:first]
    assert going_on.answer == plain.answer[:14]
    assert engine.free == 1
    engine.close(going_on)
    assert engine.free == 2
    assert not engine.has_work


def test_finishing_late_is_like_the_obvious_stream_s(model, tokenizer):
    """The end of the video is known only after words have been spoken about its last frame."""
    for variant in ("gdpe", "interleave", "ospe"):
        settings = StreamSettings(variant=variant, max_tail=TAIL)
        frames = make_frames(3, 0)
        obvious = ObviousStream(model, tokenizer, question=QUESTION, settings=settings)
        batch = make_engine(model)
        stream = batch.open(tokenizer, question=QUESTION, settings=settings)
        for frame in frames:
            obvious.see(frame)
            list(obvious.speak(3))
            batch.see(stream, frame)
            while batch.has_work:
                batch.step()
        assert stream.answer == obvious.answer
        obvious.finish()
        list(obvious.speak(TAIL))
        batch.finish(stream)
        while batch.has_work:
            batch.step()
        assert stream.answer == obvious.answer
        assert len(stream.answer) == 9 + TAIL


@pytest.mark.parametrize(
    ("variant", "placement"), [("gdpe", None), ("gipe", APART), ("interleave", None), ("ospe", None)]
)
def test_words_on_demand_are_those_of_the_obvious_stream(model, tokenizer, variant, placement):
    """Beside a stream that speaks by its schedule."""
    engine = make_engine(model, placement=placement)
    settings = StreamSettings(variant=variant)
    obvious = ObviousStream(model, tokenizer, question=QUESTION, settings=settings)
    other = engine.open(tokenizer, question="Why?", settings=StreamSettings(variant=variant, max_tail=9))
    stream = engine.open(tokenizer, question=QUESTION, settings=settings, on_demand=True)
    with pytest.raises(ValueError, match="speaks by its schedule"):
        engine.speak(other, 3)
    with pytest.raises(ValueError, match="nothing has been seen yet"):
        engine.speak(stream, 3)
    for index, (frame, words) in enumerate(zip(make_frames(5, 0), (2, 0, 4, 0, 6), strict=True)):
        last = index == 4
        engine.see(stream, frame, last=last)
        engine.see(other, frame, last=last)
        run_out(engine)
        engine.speak(stream, words)
        run_out(engine)
        obvious.see(frame, last=last)
        list(obvious.speak(words))
    assert stream.answer == obvious.answer
    assert len(stream.answer) == 12
    assert (stream.ended, other.ended) == (None, "token_limit")
    with pytest.raises(ValueError, match="words must be a whole number"):
        engine.speak(stream, -1)


def run_out(engine):
    while engine.has_work:
        engine.step()


def test_larger_frames_are_taken_once_none_waits(model, tokenizer):
    engine, small, large = make_engine(model), make_frames(2, 0), make_frames(2, 1, (8, 8))
    expected = StreamSession(model, tokenizer, question=QUESTION, settings=StreamSettings(max_tail=TAIL))
    list(expected.run([*small, *large]))
    stream = engine.open(tokenizer, question=QUESTION, settings=StreamSettings(max_tail=TAIL))
    engine.see(stream, small[0])
    engine.see(stream, small[1])
    engine.step()
    with pytest.raises(ValueError, match="take them in"):
        engine.widen(16)
    run_out(engine)
    engine.widen(16)
    for frame in large:
        engine.see(stream, frame, last=frame is large[1])
    run_out(engine)
    assert stream.answer == expected.answer


def test_wrong_use_is_refused(model, tokenizer):
    engine = make_engine(model)
    with pytest.raises(ValueError, match="cannot be streamed in mode parallel; its modes are interleaved"):
        engine.open(tokenizer, question=QUESTION, settings=StreamSettings(variant="interleave"), mode=Mode.PARALLEL)
    with pytest.raises(ValueError, match="runs in mode parallel, not interleaved"):
        make_engine(model, placement=APART).open(
            tokenizer, question=QUESTION, settings=StreamSettings(variant="interleave")
        )
    stream = engine.open(tokenizer, question=QUESTION)
    with pytest.raises(ValueError, match="warm it up before the first"):
        engine.warm_up((4, 6))
    with pytest.raises(ValueError, match="no frames"):
        engine.finish(stream)
    with pytest.raises(ValueError, match="the frame has 16 tokens, the engine takes 6"):
        engine.see(stream, make_frames(1, 0, (8, 8))[0])
    engine.see(stream, make_frames(1, 0)[0], last=True)
    with pytest.raises(ValueError, match="has been finished"):
        engine.see(stream, make_frames(1, 0)[0])
    engine.close(stream)
    merging = engine.open(tokenizer, question=QUESTION, when_behind="merge")
    engine.see(merging, make_frames(1, 0)[0])
    with pytest.raises(ValueError, match="must have one size"):
        engine.see(merging, make_frames(1, 0, (4, 4))[0])
    with pytest.raises(ValueError, match="ascending chunk_sizes"):
        make_engine(model, chunk_sizes=(64, 16))
    with pytest.raises(ValueError, match="word_slots must be from 1 to slots - 1"):
        make_engine(model, word_slots=256)
    with pytest.raises(ValueError, match="max_slots"):
        make_engine(model, slots=64, max_slots=32)
    with pytest.raises(ValueError, match="video without frames"):
        list(run_streams(make_engine(model), tokenizer, [Request(QUESTION, [])]))
