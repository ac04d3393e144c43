"""Captions: written from events, read back, and scored."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swjax.data.moving_shapes.grammar import (
    COLOURS,
    DIRECTIONS,
    KINDS,
    SHAPES,
    SIDES,
    Event,
    event_accuracy,
    is_consistent,
    parse_caption,
    split_tokens,
    vocabulary,
    write_sentence,
)

SLOT_VALUES = {"colour": COLOURS, "shape": SHAPES, "direction": DIRECTIONS, "side": SIDES}
SLOTS = {
    "enter": ("colour", "shape", "side"),
    "turn": ("direction",),
    "hit": ("colour", "shape"),
    "recolour": ("colour",),
    "leave": ("side",),
    "move": ("direction",),
}
GOOD = "The video shows a red circle entering from the left. It turns up. It becomes blue. It hits a green square."


def write_caption(events: Sequence[Event]) -> str:
    previous = (None, *events[:-1])
    return " ".join(write_sentence(event, before) for event, before in zip(events, previous, strict=True))


def events_of(*kinds: str) -> st.SearchStrategy[Event]:
    return st.sampled_from(kinds).flatmap(
        lambda kind: st.builds(Event, st.just(kind), **{s: st.sampled_from(SLOT_VALUES[s]) for s in SLOTS[kind]})
    )


captions = st.tuples(events_of("enter"), st.lists(events_of(*(k for k in KINDS if k != "enter")), max_size=12)).map(
    lambda parts: (parts[0], *parts[1])
)


@given(captions)
def test_what_is_written_is_read_back(events):
    parsed = parse_caption(write_caption(events))
    assert parsed.events == events
    assert parsed.grammatical
    assert parsed.unparsed == ()
    assert parsed.consistent == is_consistent(events)


@given(captions, st.data())
def test_any_change_of_one_token_makes_another_caption(events, data):
    tokens = split_tokens(write_caption(events))
    assert "".join(tokens) == write_caption(events)
    place = data.draw(st.integers(0, len(tokens) - 1))
    tokens[place] = data.draw(st.sampled_from([token for token in vocabulary() if token != tokens[place]]))
    parsed = parse_caption("".join(tokens))
    assert parsed.events != events or not parsed.grammatical or tokens[place] in (" moves", " moving", " keeps")


@pytest.mark.parametrize(
    ("text", "num_events", "unparsed"),
    [
        ("", 0, ()),
        (GOOD + " ", 4, ()),
        (" " + GOOD, 4, ()),
        (GOOD.replace(". It turns", ".  It turns"), 4, ()),
        (GOOD.replace(". It turns", ".It turns"), 4, ()),
        (GOOD.replace(". It turns", ".\nIt turns"), 4, ()),
        (GOOD[:-1], 3, ("It hits a green square",)),
        (GOOD + " It", 4, ("It",)),
        (GOOD + ".", 4, (".",)),
        ("It turns up.", 1, ()),
        (GOOD + " " + GOOD, 8, ()),
        (GOOD.replace("up", "top"), 3, ("It turns top.",)),
        (GOOD.replace("It becomes blue", "It It becomes blue"), 3, ("It It becomes blue.",)),
        (GOOD.replace("square", "blue"), 3, ("It hits a green blue.",)),
        (GOOD[:52].lower(), 0, (GOOD[:52].lower(),)),
    ],
)
def test_ungrammatical_text_still_gives_its_well_formed_sentences(text, num_events, unparsed):
    parsed = parse_caption(text)
    assert not parsed.grammatical
    assert not parsed.consistent
    assert len(parsed.events) == num_events
    assert parsed.unparsed == unparsed


def test_second_filler_in_a_row_keeps_moving():
    caption = write_caption([Event("enter", "red", "square", side="top"), *[Event("move", direction="down")] * 3])
    assert caption.endswith(" It moves down. It keeps moving down. It keeps moving down.")


@pytest.mark.parametrize(
    ("sentences", "consistent"),
    [
        ("", True),
        (" It moves right. It turns up. It moves up. It leaves at the top.", True),
        (" It hits a green square. It moves left. It leaves at the left.", True),
        (" It turns left.", False),
        (" It turns right.", False),
        (" It moves up.", False),
        (" It becomes red.", False),
        (" It becomes blue. It becomes red.", True),
        (" It leaves at the left.", False),
        (" It leaves at the right. It becomes blue.", False),
    ],
)
def test_consistency(sentences, consistent):
    parsed = parse_caption("The video shows a red circle entering from the left." + sentences)
    assert parsed.grammatical
    assert parsed.consistent is consistent


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "jump"}, "unknown kind of event 'jump'"),
        ({"kind": "turn", "direction": "top"}, "direction of a 'turn' event is 'top'"),
        ({"kind": "turn"}, "direction of a 'turn' event is None"),
        ({"kind": "turn", "direction": "up", "colour": "red"}, "an event of kind 'turn' has no colour"),
    ],
)
def test_bad_events_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Event(**arguments)


def test_a_caption_must_open_once():
    enter, turn = Event("enter", "red", "circle", side="left"), Event("turn", direction="up")
    for events in ([], [turn], [turn, enter], [enter, enter]):
        assert not is_consistent(events)


UP, DOWN = Event("turn", direction="up"), Event("turn", direction="down")
BLUE, RED = Event("recolour", "blue"), Event("recolour", "red")
FILLER = Event("move", direction="up")


@pytest.mark.parametrize(
    ("predicted", "true", "accuracy"),
    [
        ([], [], 1.0),
        ([FILLER], [], 1.0),
        ([], [UP], 0.0),
        ([UP], [], 0.0),
        ([UP, BLUE], [UP, BLUE], 1.0),
        ([UP, FILLER, BLUE, FILLER], [UP, BLUE], 1.0),
        ([BLUE, UP], [UP, BLUE], 0.5),
        ([UP, RED], [UP, BLUE], 0.5),
        ([UP, DOWN, UP, DOWN], [UP, DOWN], 0.5),
        ([UP], [UP, DOWN, UP, BLUE], 0.25),
    ],
)
def test_event_accuracy(predicted, true, accuracy):
    assert event_accuracy(predicted, true) == accuracy


@given(st.lists(events_of("turn", "recolour", "move"), max_size=6), st.lists(events_of("turn", "recolour"), max_size=6))
def test_event_accuracy_against_trying_all_subsequences(predicted, true):
    said = [event for event in predicted if event.kind != "move"]
    common = max(
        n
        for n in range(min(len(said), len(true)) + 1)
        if set(itertools.combinations(said, n)) & set(itertools.combinations(true, n))
    )
    expected = common / max(len(said), len(true)) if said or true else 1.0
    assert event_accuracy(predicted, true) == expected
