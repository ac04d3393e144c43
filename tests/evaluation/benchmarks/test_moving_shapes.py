"""Scores of Moving Shapes on captions whose scores are known."""

import json

import pytest

from swjax.data.moving_shapes.grammar import Event
from swjax.evaluation import EvaluationError, best_constant_answer, read_events, score_captions

ENTER = Event("enter", colour="red", shape="circle", side="left")
TURN = Event("turn", direction="up")
LEAVE = Event("leave", side="top")
WHOLE = "The video shows a red circle entering from the left. It turns up. It leaves at the top."
HALF = "The video shows a red circle entering from the left. It turns down. It keeps moving"


def test_scores_are_means_over_videos():
    events = {"a": (ENTER, TURN, LEAVE), "b": (ENTER, TURN)}
    scores = score_captions({"a": WHOLE, "b": HALF}, events)
    assert scores["event_accuracy"].value == pytest.approx((1 + 1 / 2) / 2)
    assert (scores["event_accuracy"].low, scores["event_accuracy"].high) == (0.5, 1)
    assert scores["grammatical"].value == 0.5


def test_best_constant_answer_is_the_best_of_the_candidates():
    events = {"a": (ENTER, TURN, LEAVE), "b": (ENTER, TURN, LEAVE), "c": (TURN,)}
    other = "The video shows a blue star entering from the left. It turns up."
    answer, accuracy = best_constant_answer([other, WHOLE], events)
    assert answer == WHOLE
    assert accuracy == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert score_captions(dict.fromkeys(events, answer), events)["event_accuracy"].value == pytest.approx(accuracy)


def test_events_are_read_as_prepare_writes_them(tmp_path):
    file = tmp_path / "events.jsonl"
    line = {"video_id": "a", "events": [{"kind": "turn", "direction": "up", "time_s": 2.5, "visible_s": 3.0}]}
    file.write_text(json.dumps(line) + "\n")
    assert read_events(file) == {"a": (TURN,)}
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(line | {"video_id": "a\x85b"}, ensure_ascii=False).encode() + b"\r\n")
    assert read_events(file) == {"a\x85b": (TURN,)}
    file.write_text(json.dumps(line) + "\n{}\n")
    with pytest.raises(EvaluationError, match=r"events\.jsonl:2 cannot be read"):
        read_events(file)
    with pytest.raises(EvaluationError, match="is missing"):
        read_events(tmp_path / "nowhere.jsonl")


def test_nothing_to_score():
    with pytest.raises(EvaluationError, match="no captions"):
        score_captions({}, {})
    with pytest.raises(EvaluationError, match="no events are known of b and 0 more"):
        score_captions({"b": WHOLE}, {"a": (ENTER,)})
    with pytest.raises(EvaluationError, match="needs captions to choose from"):
        best_constant_answer([], {"a": (ENTER,)})
