"""Misuse of one stream beside a good one, which must say exactly its words."""

import dataclasses
import math
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from full_passes import QUESTION, make_frames
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swjax.hub import CheckpointError
from swjax.inference import (
    BatchEngine,
    Frame,
    Mode,
    Request,
    Sampling,
    StreamEnded,
    StreamSession,
    StreamSettings,
    Weights,
    run_streams,
)
from swjax.inference import lane as lane_module
from swjax.inference.lane import MAX_FRAME_SIZES
from swjax.inference.sampler import NotFiniteError, SamplingRows, sample

GOOD = StreamSettings(max_tail=4)
FRAMES = make_frames(3, 0)
GRID = (4, 6)
NAN, INF = math.nan, math.inf
HUGE = 10**400
"""More than any machine's integer, and than Python shows."""


def patches_of(dtype=np.uint8, shape=(24, 1176)):
    return np.ones(shape, dtype)


def with_nan():
    patches = patches_of(np.float32)
    patches[3, 5] = NAN
    return patches


def frame(patches=None, grid_hw=GRID, video_s=0.5):
    return Frame(patches_of() if patches is None else patches, grid_hw, video_s)


BAD_FRAMES = {
    "none": None,
    "array": patches_of(),
    "float": frame(patches_of(np.float32)),
    "float with a NaN": frame(with_nan()),
    "int64": frame(patches_of(np.int64)),
    "bool": frame(patches_of(bool)),
    "list": frame(patches_of().tolist()),
    "on a device": frame(jnp.ones((24, 1176), jnp.uint8)),
    "no patches": frame(patches_of(shape=(0, 1176))),
    "a patch too few": frame(patches_of(shape=(23, 1176))),
    "a patch too many": frame(patches_of(shape=(25, 1176))),
    "narrow patches": frame(patches_of(shape=(24, 1175))),
    "flat": frame(patches_of(shape=(24 * 1176,))),
    "one axis more": frame(patches_of(shape=(1, 24, 1176))),
    "another grid": frame(grid_hw=(4, 4)),
    "an odd grid": frame(grid_hw=(3, 8)),
    "a negative grid": frame(grid_hw=(-4, -6)),
    "an empty grid": frame(patches_of(shape=(0, 1176)), (0, 6)),
    "a grid of three": frame(grid_hw=(1, 4, 6)),
    "a grid of floats": frame(grid_hw=(4.0, 6.0)),
    "no grid": frame(grid_hw=None),
    "a grid beyond integers": frame(grid_hw=(HUGE, HUGE)),
    "too large": frame(patches_of(shape=(64, 1176)), (8, 8)),
    "NaN time": frame(video_s=NAN),
    "no end of time": frame(video_s=INF),
    "text for time": frame(video_s="0.5"),
    "no time": frame(video_s=None),
}

BAD_SETTINGS = {
    "NaN temperature": lambda: Sampling(temperature=NAN),
    "infinite temperature": lambda: Sampling(temperature=INF),
    "temperature beyond float32": lambda: Sampling(temperature=1e39),
    "temperature of 400 digits": lambda: Sampling(temperature=HUGE),
    "hot": lambda: Sampling(temperature="hot"),
    "complex temperature": lambda: Sampling(temperature=1j),
    "top_k beyond int32": lambda: Sampling(top_k=2**40),
    "half of a top_k": lambda: Sampling(top_k=2.5),
    "NaN top_p": lambda: Sampling(top_p=NAN),
    "NaN penalty": lambda: Sampling(repetition_penalty=NAN),
    "penalty below float32": lambda: Sampling(repetition_penalty=1e-50),
    "infinite penalty": lambda: Sampling(repetition_penalty=INF),
    "seed beyond uint32": lambda: Sampling(seed=2**32),
    "negative seed": lambda: Sampling(seed=-1),
    "half of a seed": lambda: Sampling(seed=0.5),
    "half of a word": lambda: StreamSettings(wait_k=2.5),
    "NaN wait_k": lambda: StreamSettings(wait_k=NAN),
    "wait_k of 400 digits": lambda: StreamSettings(wait_k=HUGE),
    "no max_tail": lambda: StreamSettings(max_tail=None),
    "infinite max_tail": lambda: StreamSettings(max_tail=INF),
    "gap beyond int32": lambda: StreamSettings(variant="gipe", gap=2**31),
    "NaN seconds": lambda: StreamSettings(second_per_grid_t=NAN),
    "endless seconds": lambda: StreamSettings(second_per_grid_t=INF),
    "no seconds": lambda: StreamSettings(second_per_grid_t=0),
    "negative seconds": lambda: StreamSettings(second_per_grid_t=-1.0),
    "a count that is none": lambda: StreamSettings(counts=(3, None)),
    "a count of text": lambda: StreamSettings(counts="33"),
    "counts that are one": lambda: StreamSettings(counts=3),
    "NaN count": lambda: StreamSettings(counts=(NAN,)),
    "stop token of text": lambda: StreamSettings(stop_tokens=("a",)),
    "one stop token": lambda: StreamSettings(stop_tokens=7),
    "sampling of a name": lambda: StreamSettings(sampling="greedy"),
    "unknown variant": lambda: StreamSettings(variant="gddpe"),
    "NaN speed": lambda: Request(QUESTION, FRAMES, speed=NAN),
    "no speed": lambda: Request(QUESTION, FRAMES, speed=0),
    "backwards": lambda: Request(QUESTION, FRAMES, speed=-1),
    "endless speed": lambda: Request(QUESTION, FRAMES, speed=INF),
}

BAD_OPENINGS = {
    "half a character": {"question": "\ud83d"},
    "no question": {"question": None},
    "bytes": {"question": b"What?"},
    "special token": {"question": "<|im_end|>"},
    "no settings": {"settings": None},
    "settings as a dict": {"settings": {"wait_k": 3}},
    "unknown mode": {"mode": "fast"},
    "mode that the variant has not": {"mode": Mode.INTERLEAVED},
    "unknown way of being behind": {"when_behind": "skip"},
    "no tokenizer": {"tokenizer": None},
    "tokenizer of a larger model": {"vocab_size": 10},
}


@pytest.fixture(scope="module")
def batch(model):
    """One engine for all of it: whatever is left of a misuse is there for those that follow."""
    engine = BatchEngine(model, rows=2, frame_units=6, slots=256, chunk_sizes=(16,), max_slots=256)
    engine.warm_up(GRID)
    return engine


def drain(engine):
    events = []
    while engine.has_work:
        events += engine.step()
    return events


@pytest.fixture(scope="module")
def words(batch, tokenizer):
    """What the good stream says when nobody disturbs it."""
    stream = batch.open(tokenizer, question=QUESTION, settings=GOOD)
    for index, one in enumerate(FRAMES):
        batch.see(stream, one, last=index == 2)
    drain(batch)
    assert stream.ended == "token_limit"
    assert len(set(stream.answer)) > 5
    return stream.answer


@pytest.fixture
def beside(batch, tokenizer, words):
    """The engine with a good stream in the midst of its video; afterwards it must say its words, and rows be free."""
    good = batch.open(tokenizer, question=QUESTION, settings=GOOD)
    batch.see(good, FRAMES[0])
    batch.step()
    yield batch
    batch.see(good, FRAMES[1])
    drain(batch)
    batch.see(good, FRAMES[2], last=True)
    drain(batch)
    assert (good.answer, good.ended, good.fault) == (words, "token_limit", None)
    for stream in batch._open():
        batch.close(stream)
    again = batch.open(tokenizer, question=QUESTION, settings=GOOD)
    batch.see(again, FRAMES[0])
    drain(batch)
    batch.close(again)
    assert again.answer == words[:3], "a row has kept something of the stream before"


@pytest.mark.parametrize("bad", BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_a_bad_frame_is_refused_and_its_stream_may_go_on(beside, tokenizer, words, bad):
    stream = beside.open(tokenizer, question=QUESTION, settings=GOOD)
    with pytest.raises(ValueError, match=r"frame|grid_hw|video_s"):
        beside.see(stream, bad)
    beside.see(stream, FRAMES[0])
    drain(beside)
    assert stream.answer == words[:3]


@pytest.mark.parametrize("make", BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_bad_settings_cannot_be_made(make):
    with pytest.raises(ValueError, match=r"must|needs|negative|unknown") as refused:
        make()
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("changes", BAD_OPENINGS.values(), ids=BAD_OPENINGS)
def test_a_bad_opening_takes_no_row(beside, tokenizer, changes, monkeypatch):
    arguments = {"tokenizer": tokenizer, "question": QUESTION, **changes}
    if size := arguments.pop("vocab_size", None):
        text = dataclasses.replace(beside.config.text, vocab_size=size)
        monkeypatch.setattr(beside, "config", dataclasses.replace(beside.config, text=text))
    with pytest.raises(ValueError, match=r"question|settings|mode|when_behind|tokenizer"):
        beside.open(arguments.pop("tokenizer"), **arguments)
    assert beside.free == 1


def raise_(*_):
    raise RuntimeError("somebody's fault")


def break_track(stream):
    stream._scheduler._track.reveal = raise_


def break_decoder(stream):
    stream._decoder = None


def break_patches(stream):
    stream._scheduler.arrivals.coming.frame.patches.resize((24, 7), refcheck=False)


FAULTS = {
    "its plan fails": break_track,
    "its text fails": break_decoder,
    "its words fail": lambda stream: setattr(stream, "answer", None),
    "its frame changes its shape": break_patches,
    "its size cannot be told": lambda stream: setattr(stream._scheduler, "need", raise_),
    "its slots are lost": lambda stream: setattr(stream, "_origin", None),
}


@pytest.mark.parametrize("break_", FAULTS.values(), ids=FAULTS)
def test_a_fault_ends_its_stream_alone(beside, tokenizer, break_):
    stream = beside.open(tokenizer, question=QUESTION, settings=GOOD)
    beside.see(stream, frame(patches_of()))
    break_(stream)
    ends = [event for one, event in drain(beside) if one is stream and isinstance(event, StreamEnded)]
    assert [event.reason for event in ends] == ["fault"] == [stream.ended]
    assert isinstance(stream.fault, Exception)
    assert beside.free == 1
    with pytest.raises(ValueError, match="has ended"):
        beside.see(stream, FRAMES[0])


def test_streams_of_others_and_ended_ones_are_refused(beside, model, tokenizer):
    other = BatchEngine(model, rows=2, frame_units=6, slots=256, chunk_sizes=(16,))
    stranger = other.open(tokenizer, question=QUESTION)
    for misuse in (
        lambda: beside.see(stranger, FRAMES[0]),
        lambda: beside.finish(stranger),
        lambda: beside.close(stranger),
    ):
        with pytest.raises(ValueError, match="another engine"):
            misuse()
    mine = beside.open(tokenizer, question=QUESTION)
    with pytest.raises(ValueError, match="no frames"):
        beside.finish(mine)
    beside.close(mine)
    beside.close(mine)
    beside.finish(mine)
    with pytest.raises(ValueError, match=r"has ended \(closed\)"):
        beside.see(mine, FRAMES[0])
    assert beside.free == 1


@pytest.mark.parametrize("step", [True, False], ids=["one by one", "all at once"])
def test_a_schedule_that_is_too_short_is_refused_where_the_frame_comes(beside, tokenizer, words, step):
    stream = beside.open(tokenizer, question=QUESTION, settings=StreamSettings(counts=(3,), max_tail=4))
    for one in FRAMES[:2]:
        beside.see(stream, one)
        for _ in range(9 * step):
            beside.step()
    with pytest.raises(ValueError, match="has counts for 1 frames, but frame 1"):
        beside.see(stream, FRAMES[2])
    beside.finish(stream)
    drain(beside)
    assert stream.ended == "token_limit"
    assert stream.answer[:3] == words[:3]
    assert len(stream.answer) == 3 + 4


def test_a_schedule_that_runs_out_where_frames_are_dropped_is_a_fault(beside, tokenizer):
    stream = beside.open(tokenizer, question=QUESTION, settings=StreamSettings(counts=(1,)), when_behind="drop")
    for one in make_frames(3, 1):
        beside.see(stream, one)
        for _ in range(4):
            beside.step()
    drain(beside)
    assert stream.ended == "fault"
    assert "has counts for 1 frames" in str(stream.fault)


def broken_video():
    yield FRAMES[0]
    yield FRAMES[1]
    raise RuntimeError("the file ends here")


BAD_REQUESTS = {
    "NaN time": Request(QUESTION, [FRAMES[0], frame(video_s=NAN), *FRAMES], speed=100.0),
    "no end of time": Request(QUESTION, [*FRAMES, frame(video_s=INF)], speed=100.0),
    "float frame": Request(QUESTION, [*FRAMES, BAD_FRAMES["float with a NaN"], *FRAMES]),
    "video breaks off": Request(QUESTION, broken_video()),
    "too short a schedule": Request(QUESTION, FRAMES, StreamSettings(counts=(1,))),
    "no video": Request(QUESTION, []),
    "frames that are none": Request(QUESTION, 7),
    "no request": None,
    "half a character": Request("\ud83d", FRAMES),
}


@pytest.mark.parametrize("bad", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_request_leaves_the_others_their_words(batch, tokenizer, words, bad):
    good = Request(QUESTION, FRAMES, GOOD)
    ended, error = {}, None
    try:
        for index, stream, event in run_streams(batch, tokenizer, [good, bad, good]):
            if isinstance(event, StreamEnded):
                ended[index] = stream
    except Exception as raised:
        error = raised
    assert ended[0].answer == ended[2].answer == words
    assert (error is None) == (1 in ended), "it has an end or an error"
    if 1 in ended:
        assert ended[1].ended == "fault"
    assert batch.free == 2


def test_two_bad_requests_are_both_reported(batch, tokenizer):
    with pytest.raises(ValueError, match="half a character") as raised:
        list(run_streams(batch, tokenizer, [Request("\ud83d", FRAMES), Request(QUESTION, [])]))
    assert "video without frames" in raised.value.__notes__[0]


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_what_is_not_finite_stays_with_its_stream(tokenizer, random_model, implementation, monkeypatch):
    """Numbers that overflow end their stream with an error of its own, and leave nothing in the row."""
    from swjax.attention import SpanAttention

    model = nnx.clone(random_model)
    model.decoder.layers.attention = SpanAttention(implementation)
    engine = BatchEngine(model, rows=2, frame_units=6, slots=128, chunk_sizes=(16,), max_slots=128)
    runs = [request_words(engine, tokenizer) for _ in range(2)]
    assert runs[0] == runs[1]
    stream = engine.open(tokenizer, question=QUESTION, settings=GOOD)
    engine._speaker._inbox = jnp.full_like(engine._speaker._inbox, NAN)
    monkeypatch.setattr(engine._speaker, "encode", lambda *_: None)
    engine.see(stream, FRAMES[0])
    drain(engine)
    monkeypatch.undo()
    assert stream.ended == "fault"
    assert isinstance(stream.fault, NotFiniteError)
    assert stream.answer == []
    assert not np.isfinite(engine._speaker._cache.values).all(), "nothing was overflown"
    assert request_words(engine, tokenizer) == runs[0]
    assert np.isfinite(engine._speaker._cache.values).all()


def request_words(engine, tokenizer):
    return [stream for _, stream, _ in run_streams(engine, tokenizer, [Request(QUESTION, FRAMES, GOOD)])][-1].answer


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_no_token_is_chosen_from_scores_that_are_not_finite(value):
    scores = np.zeros((4, 5), np.float32)
    scores[1::2, 3] = value
    rows = SamplingRows.of([Sampling(), Sampling(), Sampling(temperature=1.0), Sampling(temperature=1.0)], [0] * 4)
    chosen = sample(jnp.asarray(scores), jnp.zeros((4, 5), bool), rows)
    assert (np.asarray(chosen) >= 0).tolist() == [True, False, True, False]


def test_a_session_says_when_scores_are_not_finite(weights, tokenizer):
    session = StreamSession(weights, tokenizer, question=QUESTION)
    session.see(FRAMES[0])
    lane = session._engine._speaker
    lane._cache = lane._cache._replace(values=lane._cache.values.at[0, 0, 0, lane.left, 2].set(NAN))
    with pytest.raises(NotFiniteError, match="answer token 0"):
        list(session.speak(1))
    with pytest.raises(ValueError, match="uint8"):
        session.see(BAD_FRAMES["float with a NaN"])
    with pytest.raises(ValueError, match="speed"):
        list(session.run(FRAMES, speed=NAN))


@pytest.mark.parametrize("holder", [Weights, lambda model: BatchEngine(model, rows=1, frame_units=6)])
def test_weights_that_are_not_finite_are_found_at_load(random_model, holder):
    model = nnx.clone(random_model)
    weight = model.decoder.embedding_vd
    weight[...] = weight[...].at[5, 1].set(NAN).at[6, 1].set(INF)
    with pytest.raises(CheckpointError, match=r"decoder/embedding_vd \(2 of \d+\)"):
        holder(model)


def test_frames_of_any_shape_are_compiled_in_a_few_sizes(model, tokenizer):
    shapes = [(2, 2 * columns) for columns in range(1, 16)]
    engine = BatchEngine(model, rows=1, frame_units=16, slots=256, chunk_sizes=(16,), max_slots=256)
    encode = engine._perceiver._compiled.encode
    engine.warm_up(GRID)
    before = encode._cache_size()
    padded = {}
    for grid in shapes:
        padded[grid] = [
            stream
            for _, stream, _ in run_streams(engine, tokenizer, [Request(QUESTION, make_frames(2, 1, grid), GOOD)])
        ][-1].answer
    assert encode._cache_size() == before, "no shape is compiled once the engine is warm"
    cold = BatchEngine(model, rows=1, frame_units=16, slots=256, chunk_sizes=(16,), max_slots=256)
    for grid in shapes[::5]:
        request = Request(QUESTION, make_frames(2, 1, grid), GOOD)
        assert [stream for _, stream, _ in run_streams(cold, tokenizer, [request])][-1].answer == padded[grid]
    sizes = {cold._perceiver._frame_size(4 * units) for units in range(1, 17)}
    assert len(sizes) <= MAX_FRAME_SIZES + 1
    assert max(sizes) == 64
    assert len({tuple(answer) for answer in padded.values()}) > 10


def test_larger_rows_are_compiled_before_they_are_needed(model, tokenizer, monkeypatch):
    """While they are compiled, the stream that needs them waits, and the others go on."""
    engine = BatchEngine(model, rows=2, frame_units=6, slots=128, max_slots=256, chunk_sizes=(16,))
    started, futures = [], []

    def submit(call, slots, sizes):
        started.append(slots)
        futures.append(lane_module.Future())
        return futures[-1]

    monkeypatch.setattr(lane_module, "_COMPILER", SimpleNamespace(submit=submit))
    long = engine.open(tokenizer, question=QUESTION, settings=StreamSettings(max_tail=70))
    engine.see(long, FRAMES[0], last=True)
    while len(long.answer) < 52:
        engine.step()
    assert started == [192], "nothing is compiled at a quarter of free room"
    assert engine._speaker.slots == 128
    short = engine.open(tokenizer, question=QUESTION, settings=GOOD)
    for index, one in enumerate(FRAMES):
        engine.see(short, one, last=index == 2)
    while short.ended is None:
        engine.step()
    assert long.ended is None
    assert 55 < len(long.answer) <= 62
    futures[0].set_result(None)
    drain(engine)
    assert len(long.answer) == 70
    assert engine._speaker.slots == 192


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just(HUGE), st.binary(max_size=3)
)
NAMES = ("variant", "wait_k", "counts", "gap", "second_per_grid_t", "max_tail", "stop_tokens")
SAMPLING_NAMES = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")


@st.composite
def bad_streams(draw):
    """Settings, sampling, question and frames of which some make no sense."""
    likely = {"wait_k": st.integers(1, 3), "max_tail": st.integers(1, 4), "counts": st.none()}
    chosen = draw(st.sets(st.sampled_from(NAMES), max_size=2))
    picked = {"max_tail": 3} | {
        name: draw(st.one_of(likely.get(name, ODD), ODD, st.lists(ODD, max_size=2))) for name in chosen
    }
    sampling = {name: draw(ODD) for name in draw(st.sets(st.sampled_from(SAMPLING_NAMES), max_size=2))}
    frames = draw(
        st.lists(
            st.builds(
                frame,
                st.sampled_from([None, patches_of(np.float32), with_nan(), patches_of(shape=(16, 1176)), 7]),
                st.one_of(st.sampled_from([GRID, (4, 4), (2, 2)]), st.tuples(ODD, ODD)),
                ODD,
            ),
            max_size=3,
        )
    )
    question = draw(st.one_of(ODD, st.just(QUESTION)))
    return picked, sampling, question, [*frames, *draw(st.lists(st.sampled_from(FRAMES), max_size=2))]


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(bad=bad_streams())
def test_whatever_one_stream_is_given_the_other_says_its_words(batch, tokenizer, words, bad):
    picked, sampling, question, frames = bad
    good = batch.open(tokenizer, question=QUESTION, settings=GOOD)
    batch.see(good, FRAMES[0])
    stream = None
    try:
        chosen = StreamSettings(**picked, sampling=Sampling(**sampling))
        stream = batch.open(tokenizer, question=question, settings=chosen)
    except ValueError:
        stream = None
    for one in frames if stream else ():
        try:
            batch.see(stream, one)
        except ValueError:
            continue
        batch.step()
    for index, one in enumerate(FRAMES[1:]):
        batch.see(good, one, last=index == 1)
    for _ in range(40):
        batch.step()
    assert (good.answer, good.ended) == (words, "token_limit")
    if stream is not None:
        batch.close(stream)
    assert batch.free == 2
