"""What a model that decides has said and when, and what was to be said then: of each question about a video."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from swjax.data.decisions import question_times
from swjax.data.encoding import frame_arrivals
from swjax.data.example import Sentence, VideoExample
from swjax.data.text import join_texts
from swjax.evaluation.bootstrap import Score, mean_score
from swjax.evaluation.predict import LaterAnswer, Prediction
from swjax.evaluation.timing import Episode
from swjax.streaming import DecisionTokens

SPEAKERS = {"never": "never speaks", "always": "speaks after every frame", "every_2": "speaks after every second frame"}
"""Speakers that see nothing, by their names in `swjax.evaluation.timing`, as rows of a table."""


class Utterance(NamedTuple):
    """What is said at once.

    Attributes:
        frame: number of the newest frame when it began, 0 for the newest when its question came.
        text: without blanks around it.
    """

    frame: int
    text: str


@dataclass(frozen=True)
class TimedAnswer:
    """What was said to a question, and what was to be said.

    Attributes:
        kind: of the question; the question itself for one before the video.
        said, due: in the order of time.
        episode: their frames alone.
    """

    kind: str
    said: tuple[Utterance, ...]
    due: tuple[Utterance, ...]
    episode: Episode


def read_answers(
    predictions: Sequence[Prediction],
    examples: Mapping[str, VideoExample],
    decisions: DecisionTokens,
    *,
    fps: float,
    pictures: int,
) -> list[TimedAnswer]:
    """The answers to questions about videos of which it is known when what is due.

    Args:
        predictions: what was said.
        examples: by key; questions whose answer has no times are left out, and so is the one before the video where
            others follow and nothing is due of it.
        decisions: the tokens that say that nothing, or no more, is to be said.
        fps: pictures a second.
        pictures: of a frame.
    """
    answers = []
    for one in predictions:
        example = examples[one.key]
        arrival_s = frame_arrivals(one.frames, fps=fps, pictures=pictures)
        asked_s = question_times([question.time_s for question in example.questions], arrival_s).tolist()
        asked = [answer for answer in one.later if answer.asked_after is not None]
        begins = [0, *(answer.asked_after or 0 for answer in asked)]
        stops = [*(begin + 1 for begin in begins[1:]), one.frames]
        parts: list[tuple[str, Prediction | LaterAnswer, float, tuple[Sentence, ...]]] = [
            (example.question or "", one, -np.inf, example.sentences)
        ]
        parts += [
            (question.kind, answer, time_s, question.sentences)
            for question, answer, time_s in zip(example.questions, asked, asked_s, strict=True)
        ]
        for (kind, answer, time_s, sentences), begin, stop in zip(parts, begins, stops, strict=True):
            if answer is one and not sentences and (example.caption or asked):
                continue
            said, due = _said(answer, begin, decisions), _due(sentences, time_s, begin, arrival_s)
            episode = Episode(
                spoken=tuple(utterance.frame for utterance in said),
                due=tuple(utterance.frame for utterance in due),
                num_frames=stop - begin,
                frame_s=pictures / fps,
                kind=kind,
            )
            answers.append(TimedAnswer(kind, said, due, episode))
    return answers


def _said(answer: Prediction | LaterAnswer, begin: int, decisions: DecisionTokens) -> tuple[Utterance, ...]:
    """What stands between the tokens of decisions."""
    utterances: list[Utterance] = []
    begun = False
    for token, word, frame in zip(answer.token_ids, answer.words, answer.after_frame, strict=True):
        if token in (decisions.skip, decisions.end):
            begun = False
            continue
        if not begun:
            utterances.append(Utterance(frame - begin, ""))
        utterances[-1] = Utterance(utterances[-1].frame, utterances[-1].text + word)
        begun = True
    return tuple(Utterance(frame, text.strip()) for frame, text in utterances)


def _due(sentences: Sequence[Sentence], asked_s: float, begin: int, arrival_s: np.ndarray) -> tuple[Utterance, ...]:
    """What is due at one frame is said as one."""
    by_frame: dict[int, list[str]] = {}
    for sentence in sentences:
        at = begin if sentence.time_s <= asked_s else int(np.searchsorted(arrival_s, sentence.time_s))
        by_frame.setdefault(min(at, len(arrival_s) - 1) - begin, []).append(sentence.text)
    return tuple(Utterance(frame, join_texts(texts)[0]) for frame, texts in by_frame.items())


def answer_scores(answers: Sequence[TimedAnswer]) -> dict[str, Score]:
    """The shares of questions with the right answer, to the letter: in what is said, and in when it is said too.

    Args:
        answers: at least one.
    """
    texts = [[[utterance.text for utterance in side] for side in (one.said, one.due)] for one in answers]
    return {
        "right_words": mean_score([said == due for said, due in texts]),
        "right_words_in_time": mean_score([one.said == one.due for one in answers]),
    }
