"""Captions tell what has been seen, as soon as it is told, and fit the paper's filter."""

import pytest

from swjax.data.moving_shapes.grammar import Event
from swjax.data.moving_shapes.narration import TimedEvent, narrate, seen_until

ENTER = TimedEvent(Event("enter", "red", "circle", side="left"), 0.1, 1.0)


def test_seen_until_follows_wait_3():
    assert [seen_until(token, 3) for token in range(12)] == [0.5] * 3 + [1.5] * 3 + [2.5] * 6


def test_an_event_waits_until_it_shows_and_fillers_pass_the_time():
    turn = TimedEvent(Event("turn", direction="up"), 5.6, 6.0)
    sentences = narrate([ENTER, turn], 8)
    assert [sentence.text for sentence in sentences] == [
        "The video shows a red circle entering from the left.",
        "It moves right.",
        "It keeps moving right.",
        "It turns up.",
    ]
    assert [sentence.first_token for sentence in sentences] == [0, 11, 15, 20]


@pytest.mark.parametrize(
    ("events", "num_frames"),
    [
        ([ENTER, TimedEvent(Event("turn", direction="up"), 9.6, 10.0)], 9),  # never shows
        ([ENTER, TimedEvent(Event("leave", side="right"), 3.0, 3.0)], 9),  # nothing to say afterwards
        ([ENTER], 4),  # 11 tokens, too few for 4 seconds
        ([ENTER, *[TimedEvent(Event("recolour", "blue"), 2.6, 3.0)] * 6], 5),  # 35 tokens, too many for 5 seconds
    ],
)
def test_no_caption_where_none_fits(events, num_frames):
    assert narrate(events, num_frames) is None
