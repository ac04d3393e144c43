"""Schedules that are made from something else, against walking through time."""

import numpy as np
import pytest
from chats import SPECIAL, Chat, Item, Turn
from hypothesis import given
from hypothesis import strategies as st

from swjax.streaming import (
    aligned_schedule,
    build_layout,
    device,
    last_visible_frame,
    random_schedule,
    schedule_from_arrivals,
    schedule_from_token_times,
    tokens_per_frame_schedule,
)


def test_random_counts_are_seeded_and_bounded():
    counts = random_schedule(2000, low=1, high=5, seed=3)
    np.testing.assert_array_equal(counts, random_schedule(2000, low=1, high=5, seed=3))
    assert set(counts) == {1, 2, 3, 4, 5}
    assert abs(counts.mean() - 3) < 0.15
    assert (counts != random_schedule(2000, low=1, high=5, seed=(3, 1))).any()
    with pytest.raises(ValueError, match=r"got 4\.\.2"):
        random_schedule(3, low=4, high=2, seed=0)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.floats(0.1, 20))
def test_counts_from_arrivals(times, pace):
    arrivals = np.sort(times)
    counts = schedule_from_arrivals(arrivals, tokens_per_second=pace)
    assert counts[-1] == 0
    spoken = np.cumsum(counts)[:-1]
    assert np.abs(spoken - (arrivals[1:] - arrivals[0]) * pace).max(initial=0) <= 1.001


def test_a_steady_stream_gives_wait_k():
    counts = schedule_from_arrivals(np.arange(10) / 3, tokens_per_second=9)
    np.testing.assert_array_equal(counts[:-1], 3)


def test_counts_from_token_times():
    counts = schedule_from_token_times([0.0, 0.2, 1.0, 1.9, 5.0], [0.5, 1.0, 2.0, 3.0])
    np.testing.assert_array_equal(counts, [2, 2, 0, 1])


@given(
    sentences=st.lists(st.tuples(st.integers(1, 9), st.floats(0, 20)), max_size=6),
    frames=st.integers(20, 30),
    wait_k=st.integers(1, 4),
)
def test_sentences_wait_for_their_time(sentences, frames, wait_k):
    starts = sorted(start for _, start in sentences)
    lengths = [length for length, _ in sentences]
    arrivals = np.arange(1.0, frames + 1)
    expected, spoken, words = [], 0, np.repeat(starts, lengths)
    for arrival in arrivals:
        count = 0
        while count < wait_k and spoken < len(words) and words[spoken] <= arrival:
            count, spoken = count + 1, spoken + 1
        expected.append(count)
    np.testing.assert_array_equal(aligned_schedule(lengths, starts, arrivals, wait_k=wait_k), expected)


def test_a_time_aligned_caption_sees_no_earlier_frame():
    chat = Chat((Turn((Item((6, 2, 2)),), 5),))
    counts = aligned_schedule([2, 3], [0.0, 4.0], np.arange(1.0, 7.0), wait_k=3)
    np.testing.assert_array_equal(counts, [2, 0, 0, 3, 0, 0])
    layout = build_layout(chat.ids, chat.grids(is_video=True), variant="gdpe", schedule=counts, special_tokens=SPECIAL)
    words = layout.step[layout.is_target][::-1][3:8]
    np.testing.assert_array_equal(words, [0, 0, 3, 3, 3])


def test_impossible_times():
    with pytest.raises(ValueError, match=r"a sentence starts at 9.0 s, but the last frame arrives at 3.0 s"):
        aligned_schedule([1], [9.0], [1.0, 3.0], wait_k=3)
    with pytest.raises(ValueError, match="never goes backwards"):
        schedule_from_arrivals([1.0, 0.5], tokens_per_second=3)
    with pytest.raises(ValueError, match="each sentence needs"):
        aligned_schedule([1, 2], [0.0], [1.0], wait_k=3)


def test_the_same_on_the_device():
    np.testing.assert_array_equal(device.tokens_per_frame_schedule(3, 4), tokens_per_frame_schedule(3, 4))
    counts = np.array([2, 0, 3], np.int32)
    np.testing.assert_array_equal(device.tokens_per_frame_schedule(counts, 3), counts)
    index = np.arange(9)
    np.testing.assert_array_equal(device.last_visible_frame(counts, index), last_visible_frame(counts, index))
    np.testing.assert_array_equal(last_visible_frame(np.array([3, 3, 3]), index), np.minimum(index // 3, 2))
    for name, arguments in (("text_positions", (5, 3)), ("frame_positions", (7, np.arange(4), 2, 3, 1.5))):
        on_host = getattr(__import__("swjax.streaming", fromlist=[name]), name)(*arguments)
        np.testing.assert_array_equal(getattr(device, name)(*arguments), on_host)
