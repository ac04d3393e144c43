"""Tokens dropped before the decoder: each rule against loops over places, and streams against a masked model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from full_passes import QUESTION, forward, make_frames
from jax.sharding import SingleDeviceSharding
from replay import replayed_scores

from swjax.data.chat import encode_chat
from swjax.data.pruned import kept_tokens
from swjax.inference import BatchEngine, FrameSeen, Mode, Request, StreamSession, StreamSettings, run_streams
from swjax.inference.dropping import DROPS, DTD, EVS, MSSAVT, FrameView, PixelDTD, Random, Uniform, VidCom2, drop_of
from swjax.inference.dropping.watcher import Watcher
from swjax.inference.frames import Frame, make_frame
from swjax.streaming import KeySpans, SpecialTokens, Variant, build_layout, pad_layout
from swjax.streaming.pruning import prune_layout

ROWS, COLUMNS, PADDED, WIDTH = 3, 4, 16, 8
UNITS = ROWS * COLUMNS


def make_view(seed=0, *, features=None, previous=None, number=1, mean=None):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(PADDED, WIDTH)) if features is None else features
    return FrameView(
        features=jnp.asarray(features, jnp.float32),
        units=jnp.int32(UNITS),
        columns=jnp.int32(COLUMNS),
        number=jnp.int32(number),
        previous=jnp.asarray(features if previous is None else previous, jnp.float32),
        has_previous=jnp.bool_(previous is not None),
        mean=jnp.zeros(WIDTH) if mean is None else jnp.asarray(mean, jnp.float32),
    )


def kept(rule, view):
    return np.flatnonzero(np.asarray(rule.keep(view))[:UNITS]).tolist()


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_dtd_compares_place_by_place():
    features, previous = (np.random.default_rng(seed).normal(size=(PADDED, WIDTH)) for seed in (0, 1))
    previous[[1, 5, 7]] = features[[1, 5, 7]] * 3
    expected = [place for place in range(UNITS) if cosine(features[place], previous[place]) <= 0.4]
    assert kept(DTD(tau=0.4), make_view(features=features, previous=previous)) == expected
    assert set(expected).isdisjoint({1, 5, 7})
    assert kept(DTD(tau=-1), make_view()) == list(range(UNITS)), "the first frame is kept whole"
    noise = np.random.default_rng(3).normal(size=(PADDED, 8 * WIDTH))
    assert kept(DTD(), make_view(features=noise, previous=noise[::-1])) == list(range(UNITS)), "nothing of noise goes"


def test_mssavt_drops_one_of_like_neighbors():
    features = np.random.default_rng(4).normal(size=(PADDED, WIDTH)) + 0.8
    previous = np.random.default_rng(5).normal(size=(PADDED, WIDTH)) + 0.3
    rule, expected = MSSAVT(temporal=0.3, spatial=0.5), []
    for row in range(ROWS):
        for column in range(COLUMNS):
            here = row * COLUMNS + column
            others = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
            inside = [r * COLUMNS + c for r, c in others if 0 <= r < ROWS and 0 <= c < COLUMNS]
            likeness = max(cosine(features[here], features[other]) for other in inside)
            spatial = (row + column) % 2 == 1 and likeness > rule.spatial
            if cosine(features[here], previous[here]) <= rule.temporal and not spatial:
                expected.append(here)
    assert kept(rule, make_view(features=features, previous=previous)) == expected
    assert 1 < len(expected) < UNITS - 1
    constant = make_view(features=np.ones((PADDED, WIDTH)))
    left = kept(rule, constant)
    assert len(left) == UNITS - UNITS // 2, "of a constant first frame, every second"
    assert not any(a + 1 in left and a % COLUMNS < COLUMNS - 1 for a in left)
    assert kept(MSSAVT(temporal=1, spatial=1), make_view(features=features, previous=previous)) == list(range(UNITS))


def test_evs_keeps_a_share_that_changed_most():
    features, previous = (np.random.default_rng(seed).normal(size=(PADDED, WIDTH)) for seed in (0, 1))
    by_change = sorted(range(UNITS), key=lambda place: cosine(features[place], previous[place]))
    for share, count in ((0.25, 3), (0.0, 1), (0.4, 4), (1.0, UNITS)):
        assert kept(EVS(share=share), make_view(features=features, previous=previous)) == sorted(by_change[:count])
    assert kept(EVS(share=0.25), make_view()) == list(range(UNITS))


@pytest.mark.parametrize("number", [0, 3])
def test_vidcom2_keeps_what_is_far_from_both_anchors(number):
    features, mean = np.random.default_rng(2).normal(size=(PADDED, WIDTH)), np.random.default_rng(3).normal(size=WIDTH)
    frame = features[:UNITS]
    steady = np.argsort(frame.var(axis=0))[: WIDTH // 2]
    unit = frame[:, steady] / np.linalg.norm(frame[:, steady], axis=-1, keepdims=True)
    anchors = [unit.mean(axis=0)] + [mean[steady] / np.linalg.norm(mean[steady])] * (number > 0)
    scores = sum(
        np.exp(-((unit - anchor) ** 2).sum(axis=-1) / (2 * 2.0**power)) for anchor in anchors for power in range(-3, 2)
    )
    expected = sorted(np.argsort(scores)[: int(UNITS * 0.5)].tolist())
    assert kept(VidCom2(share=0.5), make_view(features=features, number=number, mean=mean)) == expected


def test_controls_keep_as_many():
    assert kept(Uniform(share=0.25), make_view()) == [3, 7, 11]
    drawn = [
        kept(Random(share=0.5, seed=seed), make_view(number=number))
        for seed, number in ((0, 1), (0, 1), (0, 2), (1, 1))
    ]
    assert [len(places) for places in drawn] == [6] * 4
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert drawn[0] != drawn[3]


def pictures(count):
    """A square that moves over a still ground by one token a picture of 2 x 4 tokens."""
    made = np.full((count, 56, 112, 3), 90, np.uint8)
    for index in range(count):
        column = 28 * (index // 2 % 4)
        made[index, :28, column : column + 28] = 200
    return made


def test_what_a_watcher_sees_of_pixels():
    video = pictures(8)
    frames = [make_frame(video[i : i + 2], video_s=i / 2, min_pixels=3136, max_pixels=10**6) for i in (0, 2, 4, 6)]
    watcher = Watcher(PixelDTD(tau=0.05))
    seen = [
        np.flatnonzero(watcher.look(frame, number, jnp.zeros((12, WIDTH)))).tolist()
        for number, frame in enumerate(frames)
    ]
    # The square leaves a place and comes to the next.
    assert seen == [list(range(8)), [0, 1], [1, 2], [2, 3]]
    smaller = Frame(frames[0].patches[:16], (2, 8), 9.0)
    assert np.flatnonzero(watcher.look(smaller, 4, jnp.zeros((12, WIDTH)))).tolist() == [0, 1, 2, 3], "another size"


def test_a_slow_drift_is_seen_by_what_was_kept_last():
    """Each frame is like the one before, and the last is nothing like the first."""
    angles = np.linspace(0, np.pi / 2, 10)
    frames = make_frames(10, 0, (2, 2))
    kept_of = {}
    for against in ("previous", "last_kept"):
        watcher = Watcher(DTD(tau=0.9, against=against))
        kept_of[against] = [
            int(np.asarray(watcher.look(frame, number, jnp.array([[np.cos(angle), np.sin(angle)]]))).sum())
            for number, (frame, angle) in enumerate(zip(frames, angles, strict=True))
        ]
    assert kept_of["previous"] == [1] + [0] * 9
    assert kept_of["last_kept"] == [1, 0, 0, 1, 0, 0, 1, 0, 0, 1]


FRAMES, GRID, COUNTS, TAIL = 8, (4, 4), (2, 1, 0, 2, 1, 2, 2), 4


class Noted(Watcher):
    """Notes which tokens of each frame stayed."""

    masks: list

    def look(self, frame, number, features):
        self.masks.append(np.asarray(super().look(frame, number, features)))
        return jnp.asarray(self.masks[-1])


class EveryOther:
    """Nothing of every third frame, and of the others what is random."""

    def keep(self, view):
        return Random(share=0.5).keep(view) & (view.number % 3 != 1)


def run(model, tokenizer, monkeypatch, variant, mode, drop, **placed):
    monkeypatch.setattr("swjax.inference.batch_engine.Watcher", Noted)
    monkeypatch.setattr(Noted, "masks", [], raising=False)
    settings = StreamSettings(variant=variant, counts=COUNTS, max_tail=TAIL, drop=drop)
    sizes = {"rows": 1, "frame_units": 4, "slots": 256, "word_slots": 64, "max_slots": 256, "chunk_sizes": (16,)}
    engine = BatchEngine(model, **sizes, **placed)
    requests = [Request(QUESTION, make_frames(FRAMES, 2, GRID), settings, mode)]
    events = list(run_streams(engine, tokenizer, requests))
    stream = events[-1][1]
    assert stream.fault is None
    monkeypatch.setattr(Noted, "told", [one.kept for *_, one in events if isinstance(one, FrameSeen)], raising=False)
    return settings, stream, np.stack(Noted.masks)


@pytest.mark.parametrize(
    ("variant", "mode"),
    [("gdpe", Mode.PARALLEL), ("gipe", Mode.SEQUENTIAL), ("interleave", Mode.INTERLEAVED), ("gdpe", Mode.OFFLINE)],
)
def test_what_is_dropped_is_as_if_masked(model, weights, tokenizer, monkeypatch, variant, mode):
    settings, stream, masks = run(weights, tokenizer, monkeypatch, variant, mode, EveryOther())
    assert masks.sum(axis=1).tolist() == [2, 0, 2, 2, 0, 2, 2, 0]
    if variant == "interleave":
        masks[:, -1] |= ~masks.any(axis=1)  # it keeps its last token, from which the next word follows
    assert Noted.told == [("{:d}{:d}".format(*mask[:2]), "{:d}{:d}".format(*mask[2:])) for mask in masks]
    counts = (0,) * FRAMES if mode is Mode.OFFLINE else (*COUNTS, 0)
    frames = make_frames(FRAMES, 2, GRID)
    scores = replayed_scores(model, tokenizer, frames, settings, counts, stream.answer, kept=masks)
    assert scores.argmax(axis=-1).tolist() == stream.answer
    whole = replayed_scores(model, tokenizer, frames, settings, counts, stream.answer)
    assert np.abs(whole - scores).max() > 0.01, "what is dropped makes no difference, so this test shows nothing"
    assert stream.tally.tokens_dropped == np.count_nonzero(~masks)
    assert stream.tally.frames_seen == FRAMES


def test_on_two_devices_the_same_is_dropped(model, tokenizer, weights, monkeypatch):
    devices = tuple(SingleDeviceSharding(jax.devices()[number]) for number in (0, 1))
    _, alone, masks = run(weights, tokenizer, monkeypatch, "gdpe", Mode.PARALLEL, EVS(share=0.5))
    _, apart, same = run(model, tokenizer, monkeypatch, "gdpe", Mode.PARALLEL, EVS(share=0.5), placement=devices)
    np.testing.assert_array_equal(masks, same)
    assert masks.sum(axis=1).tolist() == [4] + [2] * 7
    assert alone.answer == apart.answer


def test_a_still_video_costs_its_first_frame(weights, tokenizer):
    """In a session: all later frames keep nothing, and are seen; and a larger one is taken in after them."""
    frame = make_frames(1, 2, GRID)[0]
    session = StreamSession(weights, tokenizer, question=QUESTION, settings=StreamSettings(drop=DTD(), max_tail=2))
    before = None
    for index in range(12):
        seen = session.see(Frame(frame.patches, GRID, index + 0.5))
        assert seen.index == index
        assert len(list(session.speak(1))) == 1
        before = session.tokens_computed if index == 0 else before
    assert session.tokens_computed == before + 11, "a word each, and no token of a frame"
    session.see(make_frames(1, 3, (24, 24))[0], last=True)
    assert len(list(session.speak(2))) == 2


def test_a_frame_that_fell_behind_is_not_compared_with(weights, tokenizer):
    """One that was never encoded: the next is compared with the one before it."""
    first, other = make_frames(2, 2, GRID)
    engine = BatchEngine(weights, rows=1, frame_units=4, slots=256, word_slots=64, max_slots=256, chunk_sizes=(16,))
    settings = StreamSettings(drop=DTD(), max_tail=2)
    stream = engine.open(tokenizer, question=QUESTION, settings=settings, when_behind="drop", watches_on=True)
    kept = []
    for frames in ([first], [other, first], [other]):
        for frame in frames:
            engine.see(stream, frame)
        while engine.has_work:
            kept += [event.kept for _, event in engine.step() if isinstance(event, FrameSeen)]
    assert stream.tally.frames_dropped == 1
    assert [sum(row.count("1") for row in rows) for rows in kept] == [4, 0, 4]


def test_rules_have_names_and_numbers():
    assert drop_of("none") is None
    assert drop_of("dtd") == DTD()
    assert drop_of("dtd:tau=0.25,against=last_kept") == DTD(0.25, "last_kept")
    assert drop_of("random:share=0.5,seed=3") == Random(0.5, 3)
    assert all(drop_of(name) is not None for name in DROPS)
    with pytest.raises(ValueError, match="choose one of none, dtd, dtd_pixels"):
        drop_of("DTD")
    with pytest.raises(ValueError, match="dtd takes tau, against, written as dtd:tau=8, got 'keep=1'"):
        drop_of("dtd:keep=1")
    with pytest.raises(ValueError, match="tau of rule of dropping dtd must be of type float, got 'high'"):
        drop_of("dtd:tau=high")
    with pytest.raises(ValueError, match="the share that stays must be a finite number from 0 to 1, got 2"):
        drop_of("evs:share=2")
    with pytest.raises(ValueError, match="against must be previous or last_kept"):
        DTD(against="first")
    with pytest.raises(ValueError, match="drop must be a rule"):
        StreamSettings(drop=DTD)


@pytest.mark.parametrize("variant", ["gdpe", "interleave"])
def test_training_reads_a_pruned_video_as_a_stream_does(model, weights, tokenizer, monkeypatch, variant):
    """The same rule, looking at patches before there is a model: the same tokens, ids and logits."""
    rule = PixelDTD(tau=0.334)  # of noise, about half is as unlike
    mode = Mode.usual(Variant(variant))
    settings, stream, masks = run(weights, tokenizer, monkeypatch, variant, mode, rule)
    frames, special = make_frames(FRAMES, 2, GRID), SpecialTokens.from_tokenizer(tokenizer)
    patches = np.concatenate([frame.patches for frame in frames])
    grid = (FRAMES, *GRID)
    kept = kept_tokens(rule, patches, grid, frames[0].geometry, keep_last=variant == "interleave")
    masks[:, -1] |= ~masks.any(axis=1) & (variant == "interleave")
    np.testing.assert_array_equal(kept.reshape(masks.shape), masks)
    assert FRAMES < kept.sum() < kept.size - FRAMES
    prompt = encode_chat(tokenizer, question=QUESTION, answer=None, video_grid_thw=grid)
    ids = np.array([*prompt, *stream.answer, special.im_end], np.int32)
    whole = build_layout(ids, np.array([grid]), variant=variant, schedule=(*COUNTS, 0), special_tokens=special)
    stays = np.ones(len(whole), bool)
    stays[whole.token_ids == special.video_pad] = kept
    layout = prune_layout(whole, stays)
    assert len(layout) == len(whole) - np.count_nonzero(~kept)
    row = pad_layout(layout, 128)
    logits = forward(
        model,
        row.token_ids[None],
        row.position_ids[:, None],
        KeySpans(row.spans.start[None], row.spans.stop[None]),
        pixel_values=patches[None],
        video_grid_thw=np.array([[grid]]),
        kept=np.repeat(kept, 4)[None],
    )[0]
    scores = replayed_scores(model, tokenizer, frames, settings, (*COUNTS, 0), stream.answer, kept=masks)
    queries = np.flatnonzero(row.labels >= 0)
    queries = queries[::-1] if variant == "gdpe" else queries
    assert row.labels[queries].tolist() == [*stream.answer, special.im_end]
    np.testing.assert_allclose(logits[queries[:-1]], scores, atol=1e-4)
    assert logits[queries[:-1]].argmax(axis=-1).tolist() == stream.answer
