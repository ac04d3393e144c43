"""What was said to questions about a video, and when, beside what was due."""

from pathlib import Path

import pytest

from swjax.data.example import Question, Sentence, VideoExample
from swjax.evaluation import LaterAnswer, Prediction
from swjax.evaluation.spoken import Utterance, answer_scores, read_answers
from swjax.streaming import DecisionTokens

DECISIONS = DecisionTokens(skip=0, end=1)
FRAMES = 6


def spoken(*said):
    """Fields of an answer: (frame, words) of each utterance, no words for silence."""
    tokens, words, frames = [], [], []
    for frame, text in said:
        pieces = [f" {word}" for word in text.split()]
        tokens += [2] * len(pieces) + [1 if pieces else 0]
        words += [*pieces, ""]
        frames += [frame] * (len(pieces) + 1)
    fields = {"token_ids": tokens, "words": words, "after_frame": frames, "wall_s": [0.0] * len(tokens)}
    return {"text": "".join(words), **{name: tuple(values) for name, values in fields.items()}}


def predict(said, *later):
    times = {"video_s": (), "frame_wall_s": (), "mode": "parallel", "rows": 1, "duration_s": 6.0}
    answers = tuple(LaterAnswer("?", "", ended=False, asked_after=after, **spoken(*words)) for after, words in later)
    return Prediction(key="k", reference="", ended=True, frames=FRAMES, later=answers, **times, **spoken(*said))


def read(prediction, sentences=(), questions=(), caption=""):
    timed = tuple(Sentence(text, time) for text, time in sentences)
    example = VideoExample("k", Path("x.mp4"), 6.0, caption, "What?", timed, questions)
    return read_answers([prediction], {"k": example}, DECISIONS, fps=2.0, pictures=2)


def test_utterances_stand_between_decisions():
    """Frames arrive at 0.5, 1.5, ...: what is due at 1 s is due at frame 1, and two of one frame are said as one."""
    said = [(0, ""), (1, "It turns."), (2, ""), (3, "It hits. It stops."), (4, ""), (5, "More.")]
    (answer,) = read(predict(said), [("It turns.", 1.0), ("It hits.", 3.0), ("It stops.", 3.5)])
    assert answer.due == (Utterance(1, "It turns."), Utterance(3, "It hits. It stops."))
    assert answer.said == (*answer.due, Utterance(5, "More."))
    assert (answer.episode.spoken, answer.episode.due, answer.episode.num_frames) == ((1, 3, 5), (1, 3), 6)
    assert answer.kind == "What?"


def test_silence_is_right_where_nothing_is_due():
    (silent,) = read(predict([(frame, "") for frame in range(FRAMES)]))
    assert (silent.said, silent.due) == ((), ())
    assert read(predict([(0, "So.")]), caption="A caption without times.") == []


def test_each_question_has_the_frames_up_to_the_next():
    """Frames count from the newest one when it was asked; an answer that is due at once is due at 0."""
    questions = (
        Question("What is there?", 1.5, (Sentence("A dog.", 1.5),), "present"),
        Question("When?", 3.0, (Sentence("Now.", 4.0),), "forward"),
    )
    predicted = predict(
        [(0, ""), (1, "")], (1, [(1, "A dog."), (2, "")]), (2, [(2, ""), (3, "Now."), (4, ""), (5, "")])
    )
    first, second = read(predicted, questions=questions)
    assert (first.kind, first.said, first.due, first.episode.num_frames) == (
        *("present", (Utterance(0, "A dog."),), (Utterance(0, "A dog."),)),
        2,
    )
    assert (second.said, second.due, second.episode.num_frames) == ((Utterance(1, "Now."),), (Utterance(2, "Now."),), 4)
    scores = answer_scores([first, second])
    assert scores["right_words"].value == pytest.approx(1.0)
    assert scores["right_words_in_time"].value == pytest.approx(0.5), "the second is a frame early"


def test_the_first_question_counts_where_something_is_due_of_it():
    questions = (Question("And?", 2.0, (Sentence("So.", 2.0),)),)
    predicted = predict([(0, "One."), (1, "")], (1, [(1, "So.")]))
    first, second = read(predicted, [("One.", 0.0)], questions)
    assert (first.said, first.episode.num_frames) == ((Utterance(0, "One."),), 2)
    assert second.said == second.due
