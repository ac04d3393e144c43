"""Streams whose frames come by a clock that the test moves on: each look at it takes a fixed time."""

import numpy as np
import pytest
from full_passes import QUESTION, make_frames

from swjax.data.patches import video_to_patches
from swjax.inference import BatchEngine, Frame, FrameSeen, Request, StreamSettings, run_streams
from swjax.inference.frames import merge_frames
from swjax.inference.track import Track
from swjax.streaming import SpecialTokens

FRAMES = 10
SETTINGS = StreamSettings(max_tail=4)


class Clock:
    def __init__(self, step_s: float):
        self.now_s, self.step_s, self.slept = 0.0, step_s, 0

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept += 1
        self.now_s += seconds


def watch(model, tokenizer, step_s: float, when_behind: str):
    clock = Clock(step_s)
    engine = BatchEngine(model, rows=2, frame_units=6, slots=256, chunk_sizes=(4, 16), clock=clock)
    request = Request(QUESTION, make_frames(FRAMES, 0), SETTINGS, speed=1.0, when_behind=when_behind)
    events = list(run_streams(engine, tokenizer, [request], clock=clock, sleep=clock.sleep))
    return events[-1][1], [event for *_, event in events], clock


@pytest.mark.parametrize("when_behind", ["delay", "drop", "merge"])
def test_a_stream_that_keeps_up_waits_for_its_frames(model, tokenizer, when_behind):
    stream, events, clock = watch(model, tokenizer, 0.02, when_behind)
    seen = [event for event in events if isinstance(event, FrameSeen)]
    assert [event.index for event in seen] == list(range(FRAMES))
    assert all(event.wall_s >= event.video_s for event in seen)
    assert stream.tally.frames_delayed == stream.tally.frames_dropped == stream.tally.frames_merged == 0
    assert stream.tally.largest_lag_s < 1
    assert clock.slept > FRAMES / 2
    assert len(stream.answer) == 3 * (FRAMES - 1) + 4


def test_a_stream_that_falls_behind_takes_frames_late(model, tokenizer):
    on_time, _, _ = watch(model, tokenizer, 0.02, "delay")
    late, events, _ = watch(model, tokenizer, 0.4, "delay")
    assert late.answer == on_time.answer
    assert late.tally.frames_seen == late.tally.frames_encoded == FRAMES
    assert late.tally.frames_delayed > FRAMES / 2
    assert late.tally.largest_lag_s > 5
    assert late.tally.frames_dropped == late.tally.frames_merged == 0
    # The first words come no later than behind the first frame.
    assert isinstance(events[0], FrameSeen)


@pytest.mark.parametrize("when_behind", ["drop", "merge"])
def test_a_stream_that_falls_behind_leaves_frames_out(model, tokenizer, when_behind):
    delayed, _, _ = watch(model, tokenizer, 0.4, "delay")
    stream, events, _ = watch(model, tokenizer, 0.4, when_behind)
    tally = stream.tally
    left_out = tally.frames_dropped if when_behind == "drop" else tally.frames_merged
    assert left_out > 2
    assert tally.frames_seen + left_out == FRAMES
    assert tally.frames_seen == tally.frames_encoded
    assert tally.frames_delayed == 0
    assert tally.largest_lag_s < delayed.tally.largest_lag_s
    assert len(stream.answer) == 3 * (tally.frames_seen - 1) + 4
    seen = [event.index for event in events if isinstance(event, FrameSeen)]
    assert seen == sorted(set(seen))
    if when_behind == "drop":
        assert seen[-1] == FRAMES - 1, "the newest frame is always taken in"
    again, _, _ = watch(model, tokenizer, 0.4, when_behind)
    assert again.answer == stream.answer


def test_a_frame_after_dropped_ones_keeps_its_time(tokenizer):
    track = Track(StreamSettings(), SpecialTokens.from_tokenizer(tokenizer), tokens_per_second=2)
    first = track.frame(2, 3, 0)
    track.reveal()
    track.feed()
    later = track.frame(2, 3, 5)
    assert (later.positions[0] - first.positions[0]).tolist() == [10] * 6
    assert later.slots.tolist() == [6, 7, 8, 9, 10, 11]


def test_a_merged_frame_has_the_first_and_the_last_picture():
    pictures = np.random.default_rng(0).integers(0, 256, (6, 56, 84, 3), np.uint8)

    def frame(*indices: int) -> Frame:
        patches, (_, rows, columns) = video_to_patches(pictures[list(indices)], min_pixels=3136, max_pixels=100_000)
        return Frame(patches, (rows, columns), float(indices[-1]))

    merged = merge_frames(frame(0, 1), frame(4, 5))
    np.testing.assert_array_equal(merged.patches, frame(0, 5).patches)
    assert merged.video_s == 5.0
    with pytest.raises(ValueError, match="cannot be merged"):
        merge_frames(frame(0, 1), make_frames(1, 0, (4, 4))[0])
