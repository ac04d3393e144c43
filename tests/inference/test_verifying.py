"""The rule `verify`: what was said last is read again when a frame has come, as one full pass reads it there."""

from dataclasses import replace

import numpy as np
import pytest
from full_passes import QUESTION, ROW, forward, make_frames

from swjax.inference import BatchEngine, Mode, Request, StreamSession, StreamSettings, TokenSpoken
from swjax.inference.feed import run_streams
from swjax.inference.memory import Window
from swjax.inference.prompt import encode_prompt
from swjax.inference.voice import Voice
from swjax.streaming import (
    DecisionTokens,
    KeySpans,
    SourceFrame,
    SourceText,
    SpecialTokens,
    Spoken,
    build_conversation,
    read_events,
    speaking_of,
)

GRID = (4, 4)
FRAMES = 7
FACTOR = 1.0


ALL = make_frames(FRAMES, 5, GRID)


def losses_of(model, tokenizer, shown, utterances, variant):
    """Cross entropy of each token of each utterance, as (item, tokens), and whether it is the likeliest: one pass.

    Features of frames that have not been shown have no token that takes them.
    """
    special = SpecialTokens.from_tokenizer(tokenizer)
    events = [SourceText(tuple(encode_prompt(tokenizer, special, QUESTION).tolist()), is_item=False)]
    for item in range(shown):
        events.append(SourceFrame(2, 2))
        events += [Spoken(special.prefix)] if item == 0 else []
        events += [Spoken(tuple(tokens)) for placed, tokens in utterances if placed == item]
    layout = build_conversation(events, variant=variant, special_tokens=special)
    count = len(layout)
    padded = np.pad(layout.token_ids, (0, ROW - count))[None]
    ids = np.pad(layout.position_ids, ((0, 0), (0, ROW - count)))[:, None]
    slots = np.arange(ROW)
    start, stop = slots.copy(), slots + 1
    start[:count], stop[:count] = layout.spans.start, layout.spans.stop
    scores = np.asarray(
        forward(
            model,
            padded.astype(np.int32),
            ids.astype(np.int32),
            KeySpans(start[None].astype(np.int32), stop[None].astype(np.int32)),
            pixel_values=np.concatenate([frame.patches for frame in ALL])[None],
            video_grid_thw=np.array([[(FRAMES, *GRID)]]),
        )
    )[0].astype(np.float64)
    read = read_events(events, special)
    index = read.num_sources + len(special.prefix)
    found = []
    for _, tokens in utterances:
        losses, likeliest = [], []
        for token in tokens:
            (slot,) = np.flatnonzero(layout.chat_index == index)
            row = scores[slot + 1]  # the token before, in designs with the group mask
            losses.append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[token])
            likeliest.append(int(row.argmax()) == token)
            index += 1
        found.append((np.array(losses), likeliest))
    return found


class Ends(int):
    """Equal to every third token, so that a model which has learned nothing ends what it says."""

    def __eq__(self, token):
        return token % 3 == 0

    __hash__ = int.__hash__


def settings_of(variant):
    rule = speaking_of(f"verify:factor={FACTOR},most=30")
    return StreamSettings(variant=variant, max_tail=3, speaking_rule=rule, decisions=DecisionTokens(-2, Ends(-2)))


def watch(engine, tokenizer, settings):
    """The tokens after each frame of a video that has not ended."""
    stream = engine.open(tokenizer, question=QUESTION, settings=settings)
    said = [[] for _ in ALL]
    for item, frame in enumerate(ALL):
        engine.see(stream, frame)
        while engine.has_work:
            said[item] += [event.token_id for _, event in engine.step() if isinstance(event, TokenSpoken)]
    engine.close(stream)
    return said


@pytest.fixture(scope="module")
def engine(model):
    return BatchEngine(model, rows=2, frame_units=4, slots=256, chunk_sizes=(16,))


@pytest.mark.parametrize("variant", ["gdpe", "gipe"])
def test_it_speaks_where_a_full_pass_finds_what_was_said_less_likely(model, tokenizer, engine, monkeypatch, variant):
    """And what was said counts from then on as if the last frame at which it held had come before it."""
    measured = []
    monkeypatch.setattr(
        Voice, "measured", lambda voice, value, true=Voice.measured: (measured.append(value), true(voice, value))[1]
    )
    said = watch(engine, tokenizer, settings_of(variant))
    placed, values = [], iter(measured)
    for item, tokens in enumerate(said):
        shown, whole = item + 1, [one[:2] for one in placed]
        if placed:
            (before, _), (now, _) = (
                losses_of(model, tokenizer, shown, [*whole[:-1], (at, placed[-1][1])], variant)[-1]
                for at in (placed[-1][2], item)
            )
            ratio = np.exp(now.mean() - before.mean())
            assert next(values) == pytest.approx(ratio, rel=1e-4)
            assert bool(tokens) == (ratio > FACTOR)
            if not tokens:
                placed[-1] = (item, *placed[-1][1:])
                continue
        assert tokens[-1] % 3 == 0, "an utterance ends behind the frame at which it begins"
        assert all(losses_of(model, tokenizer, shown, [*whole, (item, tokens)], variant)[-1][1])
        placed.append((item, tokens, item))
    assert next(values, None) is None
    assert len(measured) == FRAMES - 1
    assert 1 < len(placed) < FRAMES, "it has spoken again, and kept silent"


def test_modes_and_sessions_say_the_same(model, tokenizer, engine):
    frames, settings = ALL, settings_of("gdpe")
    request = Request(QUESTION, frames, settings)
    found = [[], []]
    requests = [replace(request, mode=mode) for mode in (Mode.PARALLEL, Mode.SEQUENTIAL)]
    for number, _, event in run_streams(engine, tokenizer, requests):
        found[number] += [(event.token_id, event.after_frame)] if isinstance(event, TokenSpoken) else []
    session = StreamSession(model, tokenizer, question=QUESTION, settings=settings)
    told = [(event.token_id, event.after_frame) for event in session.run(frames) if isinstance(event, TokenSpoken)]
    assert found[0] == found[1] == told
    assert told


@pytest.mark.parametrize("changes", [{"variant": "interleave"}, {"memory": Window(sources=100, words=40)}])
def test_what_cannot_be_read_again_in_its_place_is_refused(changes):
    with pytest.raises(ValueError, match="verify reads what was said again in its place"):
        replace(settings_of("gdpe"), **changes)
