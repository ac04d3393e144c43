"""Streaming through the cache against full forward passes over the growing training layout."""

import itertools

import pytest
from flax import nnx
from full_passes import GRID, QUESTION, ROW, decode_by_full_passes, decode_frames, make_frames
from obvious_stream import ObviousStream

from swjax.data.chat import encode_chat
from swjax.data.encoding import load_patches
from swjax.data.moving_shapes.render import render
from swjax.data.moving_shapes.scene import draw_scene
from swjax.data.pipeline_config import PipelineConfig
from swjax.inference import (
    FrameSeen,
    Sampling,
    StreamEnded,
    StreamSession,
    StreamSettings,
    TokenSpoken,
    read_frames,
)
from swjax.inference import lane as lane_module
from swjax.inference import programs as programs_module
from swjax.streaming import SpecialTokens, random_schedule


@pytest.mark.parametrize(
    ("variant", "wait_k", "num_frames", "seconds"),
    [
        ("gdpe", 3, 6, 1.0),
        ("gdpe", 2, 1, 1.0),
        ("gipe", 3, 9, 0.5),
        ("gipe", 1, 6, 2.0),
        ("interleave", 3, 6, 1.0),
        ("interleave", 1, 3, 1.0),
        ("interleave", 2, 1, 1.0),
        ("ospe", 3, 6, 1.0),
        ("ospe", 1, 5, 0.5),
        ("offline", 3, 5, 1.0),
        ("offline_gdpe", 3, 5, 1.0),
    ],
)
def test_streamed_tokens_equal_full_passes(model, weights, tokenizer, variant, wait_k, num_frames, seconds):
    settings = StreamSettings(variant=variant, wait_k=wait_k, second_per_grid_t=seconds, max_tail=8)
    answers = []
    for seed in range(2):
        frames = make_frames(num_frames, seed)
        session = StreamSession(weights, tokenizer, question=QUESTION, settings=settings)
        events = list(session.run(frames))
        assert session.answer == decode_frames(model, tokenizer, frames, settings, len(session.answer))
        assert [event.token_id for event in events if isinstance(event, TokenSpoken)] == session.answer
        assert isinstance(events[-1], StreamEnded)
        assert events[-1].text == session.text()
        answers.append(tuple(session.answer))
    assert answers[0] != answers[1], "the answer does not depend on the video, so this test shows nothing"


@pytest.mark.parametrize("variant", ["gdpe", "gipe", "interleave", "ospe"])
def test_random_schedules_equal_full_passes(model, weights, tokenizer, variant):
    """Among the counts are zeros: after the first frame, in the middle and several in a row."""
    for seed, frames in enumerate((5, 6)):
        counts = tuple(random_schedule(frames, low=0, high=3, seed=11 + seed))
        for schedule in (counts, (0, 0, *counts[2:])):
            settings = StreamSettings(variant=variant, counts=schedule, max_tail=4)
            session = StreamSession(weights, tokenizer, question=QUESTION, settings=settings)
            list(session.run(video := make_frames(frames, seed)))
            assert len(session.answer) == sum(schedule[:-1]) + 4
            assert session.answer == decode_frames(model, tokenizer, video, settings, len(session.answer))


def test_a_schedule_that_is_too_short_is_refused(weights, tokenizer):
    settings = StreamSettings(counts=(1, 1))
    session = StreamSession(weights, tokenizer, question=QUESTION, settings=settings)
    with pytest.raises(ValueError, match="counts for 2 frames, but frame 2 has come"):
        list(session.run(make_frames(4, 0)))


def test_sampling_is_seeded_and_stop_tokens_end_the_answer(weights, tokenizer):
    def answer(**changes) -> list[int]:
        session = StreamSession(weights, tokenizer, question=QUESTION, settings=StreamSettings(max_tail=6, **changes))
        events = list(session.run(make_frames(3, 0)))
        assert session.ended == (events[-1].reason == "end_token")
        return session.answer

    warm = {"temperature": 2.0, "top_p": 0.9}
    greedy, first, again, other = (
        answer(sampling=Sampling(**choice))
        for choice in ({}, {**warm, "seed": 1}, {**warm, "seed": 1}, {**warm, "seed": 2})
    )
    assert greedy != first
    assert first == again
    assert first != other
    assert answer(stop_tokens=(greedy[2],)) == greedy[:2]
    penalized = answer(sampling=Sampling(repetition_penalty=1e6))
    assert len(set(penalized)) == len(penalized)


def test_streamed_files_equal_full_passes_over_what_training_reads(model, weights, tokenizer, tmp_path):
    """Real videos: decoded frame by frame for the stream, as a whole by the training pipeline for the full passes."""
    settings = StreamSettings(max_tail=8)
    config = PipelineConfig(batch_size=1, max_tokens=ROW, max_patches=ROW, min_pixels=3136, max_pixels=3136)
    answers = set()
    for index in range(3):
        video = tmp_path / f"{index}.mp4"
        render(draw_scene((8, 0, index)), video, size=64)
        session = StreamSession(weights, tokenizer, question=QUESTION, settings=settings)
        list(session.run(read_frames(video, fps=2, min_pixels=3136, max_pixels=3136)))
        patches, grid = load_patches(video, config)
        assert session.answer == decode_by_full_passes(model, tokenizer, patches, grid, settings, len(session.answer))
        answers.add(tuple(session.answer))
    assert len(answers) > 1


def test_each_frame_is_encoded_once_and_each_token_computed_once(weights, tokenizer):
    frames = make_frames(5, 0)
    session = StreamSession(weights, tokenizer, question=QUESTION, settings=StreamSettings(max_tail=6))
    list(session.run(frames))
    prompt = encode_chat(tokenizer, question=QUESTION, answer=None, video_grid_thw=(5, *GRID))
    assert not session.ended
    assert len(session.answer) == 4 * 3 + 6
    assert session.frames_encoded == 5
    # The prompt holds the frames' tokens and the assistant prefix; the last token is spoken and never fed.
    assert session.tokens_computed == len(prompt) + len(session.answer) - 1


def test_the_cache_grows_at_both_ends(model, weights, tokenizer):
    frames = make_frames(60, 1)  # 360 tokens of frames and 186 of the answer
    settings = StreamSettings(wait_k=5, max_tail=10)
    session = StreamSession(weights, tokenizer, question=QUESTION, settings=settings)
    list(session.run(frames))
    assert len(session.answer) == 59 * 5 + 10
    assert session._engine._speaker.slots > 512
    short = StreamSession(weights, tokenizer, question=QUESTION, settings=settings)
    for frame in frames[:30]:
        short.see(frame)
        list(short.speak(5))
    assert short.answer == session.answer[: len(short.answer)]


def test_sessions_share_what_is_compiled_and_grow_when_they_must(weights, tokenizer, monkeypatch):
    monkeypatch.setattr(lane_module, "_COMPILER", None)  # compiles what may be needed some time
    advance = weights.compiled(programs_module.programs_of).advance

    def compiled_by(frames, **changes) -> int:
        before = advance._cache_size()
        session = StreamSession(weights, tokenizer, question=QUESTION, settings=StreamSettings(**changes))
        list(session.run(frames))
        return advance._cache_size() - before

    compiled_by(make_frames(4, 0), max_tail=6)
    assert compiled_by(make_frames(4, 1), variant="gipe", max_tail=6) == 0
    assert compiled_by(make_frames(4, 0, (4, 4)), max_tail=6) == 0
    # Words make the left end longer once: for the frame that comes then, and for the words.
    assert compiled_by(make_frames(2, 0), wait_k=256, max_tail=6) <= 2


def test_frames_of_any_size_may_follow(model, weights, tokenizer):
    frames = [*make_frames(1, 0), *make_frames(1, 1, (18, 18)), *make_frames(1, 2)]
    settings = StreamSettings(max_tail=4)
    session = StreamSession(weights, tokenizer, question=QUESTION, settings=settings)
    obvious = ObviousStream(model, tokenizer, question=QUESTION, settings=settings)
    list(session.run(frames))
    list(obvious.run(frames))
    assert session.answer == obvious.answer
    assert len(session.answer) == 2 * 3 + 4


def test_whoever_stops_listening_has_been_told_all_that_was_spoken(weights, tokenizer):
    frames = make_frames(2, 0)
    session = StreamSession(weights, tokenizer, question=QUESTION)
    session.see(frames[0])
    heard = [token.token_id for token in itertools.islice(session.speak(100), 3)]
    assert session.see(frames[1]).index == 1
    assert session.answer == heard
    other = StreamSession(weights, tokenizer, question=QUESTION)
    other.see(frames[0])
    list(other.speak(3))
    other.see(frames[1])
    assert list(other.speak(2))[-1].token_id == list(session.speak(2))[-1].token_id


@pytest.mark.parametrize("variant", ["gdpe", "interleave"])
def test_frames_may_follow_the_end_token(weights, tokenizer, variant):
    frames = make_frames(3, 0)
    plain = StreamSession(weights, tokenizer, question=QUESTION, settings=StreamSettings(variant=variant))
    plain.see(frames[0])
    stop = list(plain.speak(2))[1].token_id
    settings = StreamSettings(variant=variant, stop_tokens=(stop,))
    session = StreamSession(weights, tokenizer, question=QUESTION, settings=settings)
    session.see(frames[0])
    assert len(list(session.speak(9))) == 1
    assert session.ended
    assert [session.see(frame, last=frame is frames[2]).index for frame in frames[1:]] == [1, 2]
    assert list(session.speak(9)) == []
    assert session.frames_encoded == 3


def test_events_come_in_the_order_of_the_schedule(weights, tokenizer):
    times = iter(range(1000))
    session = StreamSession(
        weights, tokenizer, question=QUESTION, settings=StreamSettings(max_tail=4), clock=lambda: float(next(times))
    )
    events = list(session.run(make_frames(3, 0)))
    kinds = [type(event).__name__[0] for event in events]
    assert "".join(kinds) == "FTTTFTTTFTTTTS"
    assert [event.index for event in events if isinstance(event, FrameSeen)] == [0, 1, 2]
    assert [event.after_frame for event in events if isinstance(event, TokenSpoken)] == [0] * 3 + [1] * 3 + [2] * 4
    walls = [event.wall_s for event in events]
    assert walls == sorted(walls)
    assert "".join(event.text for event in events if isinstance(event, TokenSpoken)) == session.text()


def test_an_end_token_ends_the_stream(model, tokenizer):
    special = SpecialTokens.from_tokenizer(tokenizer)
    frames = make_frames(4, 0)
    plain = StreamSession(model, tokenizer, question=QUESTION)
    spoken = next(event for event in plain.run(frames) if isinstance(event, TokenSpoken))
    head = model.decoder.head_vd[...]
    changed = nnx.clone(model)
    changed.decoder.head_vd[...] = head.at[special.im_end].set(head[spoken.token_id] * 1.01)
    session = StreamSession(changed, tokenizer, question=QUESTION)
    events = list(session.run(frames))
    assert session.ended
    assert events[-1].reason == "end_token"
    assert special.im_end not in session.answer


def test_wrong_order_is_refused(weights, tokenizer):
    session = StreamSession(weights, tokenizer, question=QUESTION)
    with pytest.raises(ValueError, match="nothing has been seen yet"):
        list(session.speak(1))
    with pytest.raises(ValueError, match="no frames"):
        session.finish()
    frame = make_frames(1, 0)[0]
    session.see(frame, last=True)
    with pytest.raises(ValueError, match="has been finished"):
        session.see(frame)
    offline = StreamSession(weights, tokenizer, question=QUESTION, settings=StreamSettings(variant="offline"))
    offline.see(frame)
    with pytest.raises(ValueError, match="speaks after the video"):
        list(offline.speak(1))
    with pytest.raises(ValueError, match="unknown variant"):
        StreamSettings(variant="gddpe")
    with pytest.raises(ValueError, match="wait_k"):
        StreamSettings(wait_k=0)
