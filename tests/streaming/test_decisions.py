"""Decision tokens: after each source item a skip or a thought, which the query before it may make by what it sees."""

import numpy as np
import pytest
from chats import SPECIAL
from hypothesis import given, settings
from hypothesis import strategies as st

from swjax.streaming import (
    DESIGNS,
    DecisionTokens,
    SourceFrame,
    SourceText,
    Spoken,
    Variant,
    build_conversation,
    decide_after_items,
    order_by_time,
    thoughts_by_item,
)

PROMPT = SourceText((SPECIAL.im_start, 40, SPECIAL.vision_start), is_item=False)
ASKED = SourceText((SPECIAL.vision_end, 50, SPECIAL.vision_start))
CLOSE = SourceText(SPECIAL.trailer, is_item=False)
FRAME = SourceFrame(1, 2)
DECISIONS = DecisionTokens(skip=7, end=8)
WATCHING = [variant for variant in Variant if DESIGNS[variant].speaks_while_watching]


def decide(sources, thoughts, **arguments):
    return decide_after_items(sources, thoughts, decisions=DECISIONS, special_tokens=SPECIAL, **arguments)


def test_frames_and_texts_arrive_in_the_order_of_time():
    sources, item_s = order_by_time(
        [FRAME] * 3, [1.0, 2.0, 3.0], [(1.0, ASKED), (2.5, ASKED), (9.0, ASKED)], prompt=PROMPT, close=CLOSE
    )
    assert sources == (PROMPT, FRAME, ASKED, FRAME, ASKED, FRAME, ASKED, CLOSE)
    assert item_s.tolist() == [1.0, 1.0, 2.0, 2.5, 3.0, 9.0]


def test_a_thought_is_due_after_the_first_item_that_arrives_then_or_later():
    item_s = np.array([1.0, 2.0, 2.5, 3.0])
    said = [(0.0, [60]), (1.0, [61]), (2.1, [62, 63]), (3.0, [64])]
    assert thoughts_by_item(said, item_s) == [(60, 61), (), (62, 63), (64,)]


def test_what_is_said_after_each_item():
    events = decide([PROMPT, FRAME, ASKED, FRAME, CLOSE], [(), (60, 61), ()])
    said = [event.token_ids for event in events if isinstance(event, Spoken)]
    assert said == [(*SPECIAL.prefix, 7), (60, 61, 8), (7, SPECIAL.im_end, SPECIAL.newline)]
    later = decide([PROMPT, FRAME, ASKED, FRAME], [(), (), ()], after=1)
    assert [event.token_ids for event in later if isinstance(event, Spoken)] == [
        (*SPECIAL.prefix, 7),
        (7, SPECIAL.im_end, SPECIAL.newline),
    ]
    assert later[:3] == (PROMPT, FRAME, ASKED), "nothing is said before the question"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=7), st.sampled_from(WATCHING), st.data()
)
def test_the_decision_sees_its_item_and_nothing_later(drawn, variant, data):
    """The query of the first token after an item sees all of the item, and no source behind it."""
    after = data.draw(st.integers(0, len(drawn) - 1))
    sources = [PROMPT, *(ASKED if is_text and number else FRAME for number, (is_text, _) in enumerate(drawn))]
    thoughts = [(60,) * (length if item >= after else 0) for item, (_, length) in enumerate(drawn)]
    layout = build_conversation(decide(sources, thoughts, after=after), variant=variant, special_tokens=SPECIAL)
    mask = layout.spans.to_mask(len(layout))
    deciding = 0
    for query in np.flatnonzero(layout.labels >= 0):
        (said,) = np.flatnonzero(layout.chat_index == _next_target(layout, query))
        item = layout.step[said]
        assert layout.labels[query] == layout.token_ids[said]
        seen = mask[query] & ~layout.is_target
        np.testing.assert_array_equal(seen, ~layout.is_target & (layout.step <= item))
        deciding += layout.token_ids[said] in (DECISIONS.skip, DECISIONS.end)
    assert deciding == len(drawn) - after, "each item ends with a skip or an end of thought, and all are learned"


def _next_target(layout, query):
    """Index in the chat of the first target that this query predicts: the one that comes next in time."""
    if layout.is_target[query]:
        return layout.chat_index[query] + 1
    return min(layout.chat_index[layout.is_target & (layout.step >= layout.step[query])])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: order_by_time([FRAME], [1.0], [(0.5, ASKED)], prompt=PROMPT), "arrives at 0.5 s, before the first"),
        (lambda: order_by_time([FRAME], [1.0, 2.0], [], prompt=PROMPT), "each frame arrives at its time"),
        (lambda: order_by_time([FRAME] * 2, [2.0, 1.0], [], prompt=PROMPT), "never goes backwards"),
        (lambda: order_by_time([FRAME], [1.0], [(1.0, CLOSE)], prompt=PROMPT), "each text between frames is one"),
        (lambda: thoughts_by_item([(4.0, [60])], np.array([1.0, 3.0])), r"due at 4.0 s, and the last .* at \[3.\] s"),
        (lambda: decide([PROMPT, FRAME], [(), ()]), "there are 1 source items, 2 thoughts"),
        (lambda: decide([PROMPT, FRAME, FRAME], [(60,), ()], after=1), "due after item 0, and the message begins"),
        (lambda: decide([PROMPT, FRAME], [(60, 8)]), "the thought after item 0 holds a token of decisions"),
    ],
)
def test_impossible_decisions(call, message):
    with pytest.raises(ValueError, match=message):
        call()
