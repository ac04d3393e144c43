"""Scores against numbers that the reference implementations gave (pycocoevalcap 1.2 with its Java programs)."""

import shutil

import numpy as np
import pytest

from swjax.evaluation import EvaluationError
from swjax.evaluation.benchmarks import find_benchmark
from swjax.evaluation.bootstrap import bootstrap, mean_score
from swjax.evaluation.metrics import (
    caption_words,
    count_fragments,
    form_scores,
    own_metric,
    perplexity,
    repeated_ngrams,
    text_scores,
)

ANSWERS = [
    "The video shows a man's dog running in the park, then it jumps over a fence.",
    "A woman (in red) is cooking pasta; she doesn't look at the camera.",
    "The video shows a green circle entering from the top. It becomes red. It leaves",
    'Two children play "catch" on a well-lit street at 3.5 p.m.',
]
REFERENCES = [
    "The video shows a dog running through a park and jumping over a wooden fence.",
    "A woman in a red apron cooks pasta on a stove.",
    "The video shows a green circle entering from the top. It becomes red. It leaves at the right.",
    "Two kids are playing catch in the street at night.",
]


def test_words_are_those_of_the_tokenizer_of_coco():
    assert [" ".join(caption_words(text)) for text in ANSWERS] == [
        "the video shows a man 's dog running in the park then it jumps over a fence",
        "a woman -lrb- in red -rrb- is cooking pasta she does n't look at the camera",
        "the video shows a green circle entering from the top it becomes red it leaves",
        "two children play catch on a well-lit street at 3.5 p.m.",
    ]


def test_scores_equal_those_of_the_coco_caption_evaluation():
    scores = text_scores(ANSWERS, REFERENCES)
    assert {name: pytest.approx(score.value, rel=1e-6) for name, score in scores.items()} == {
        "cider": 295.73322004426137,
        "bleu1": 57.62711864,
        "bleu4": 36.57737307,
        "rouge_l": 57.34925756,
    }
    for score in scores.values():
        assert score.low < score.value < score.high


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs Java")
def test_meteor_equals_its_java_program():
    expected = [0.3468837865423449, 0.23339637713552375, 0.576648240772531, 0.31452290333300026]
    assert text_scores(ANSWERS, REFERENCES, meteor=True)["meteor"].value == pytest.approx(100 * np.mean(expected))


def test_meteor_without_java_says_so(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(EvaluationError, match="METEOR needs Java"):
        text_scores(ANSWERS, REFERENCES, meteor=True)


def test_answers_without_words_score_nothing():
    scores = text_scores(["", "..."], REFERENCES[:2])
    assert {score.value for score in scores.values()} == {0.0}
    with pytest.raises(EvaluationError, match="got 0 and 1"):
        text_scores([], ["a"])


def test_silence_is_no_caption():
    captions = find_benchmark("captions").score
    told = {"a": "A red dog runs.", "b": "It leaves."}
    references = {"a": "A dog runs.", "b": "It leaves at once.", "c": ""}
    assert captions({**told, "c": "So."}, references) == captions(told, references)
    assert captions({"c": "So."}, references) == {}


def test_the_interval_is_that_of_resampled_videos():
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    score = mean_score(values)
    assert score.value == pytest.approx(values.mean())
    error = values.std() / 20
    assert score.low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert score.high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)
    assert mean_score(values) == score
    alone = mean_score(values[:1])
    assert alone.low == alone.value == alone.high
    with pytest.raises(ValueError, match="no videos"):
        bootstrap(np.zeros((0, 2)), sum)


def test_perplexity_is_by_token():
    assert perplexity([2.0, 6.0], [1, 3]).value == pytest.approx(np.exp(2.0))


@pytest.mark.parametrize(
    ("text", "repeated", "ngrams"),
    [
        ("a b c d e", 0, 2),
        ("it turns up and it turns up and it turns up", 4, 8),
        ("too short", 0, 0),
        ("no no no no no no", 2, 3),
    ],
)
def test_repeated_ngrams(text, repeated, ngrams):
    assert repeated_ngrams(text) == (repeated, ngrams)


@pytest.mark.parametrize(
    ("text", "fragments", "sentences"),
    [
        ("The dog runs. It jumps high!", 0, 2),
        ("The dog runs. It jumps", 1, 2),
        ("the dog runs. It jumps high.", 1, 2),
        ("The dog. It costs 3.5 dollars.", 1, 2),
        ('He says "stop it." Then he leaves.', 0, 2),
        ("", 1, 1),
    ],
)
def test_fragments(text, fragments, sentences):
    assert count_fragments(text) == (fragments, sentences)


def test_rates_are_over_all_videos():
    scores = form_scores(["The dog runs. It jumps high!", "and then", "no no no no no no"])
    assert scores["fragments"].value == pytest.approx(2 / 4)
    assert scores["repetition"].value == pytest.approx(2 / (3 + 3))


def test_an_own_metric_is_a_function_in_a_file(tmp_path):
    file = tmp_path / "metric.py"
    file.write_text(
        "def length(answers, references):\n    return [len(a) - len(r) for a, r in zip(answers, references)]"
    )
    assert own_metric(f"{file}:length", ["abc", "a"], ["a", "a"]).value == 1.0
    with pytest.raises(EvaluationError, match="names no Python file"):
        own_metric("bleurt", ["a"], ["a"])
    with pytest.raises(EvaluationError, match="AttributeError"):
        own_metric(f"{file}:width", ["a"], ["a"])
    file.write_text("def length(answers, references):\n    return 3")
    with pytest.raises(EvaluationError, match="a number for each of the 1 answers"):
        own_metric(f"{file}:length", ["a"], ["a"])


def test_characters_are_words_in_scripts_without_spaces() -> None:
    assert caption_words("一只狗跑。2只iPhone！") == ["一", "只", "狗", "跑", "2", "只", "iphone"]
    assert caption_words("สวัสดี dog's") == ["ส", "วั", "ส", "ดี", "dog", "'s"]
    assert repeated_ngrams("狗跑来了。狗跑来了。") == (1, 5)
    assert count_fragments("一只狗跑。它叫。没有") == (2, 3)  # the second is short, the third breaks off
    assert count_fragments("「一只狗跑。」它叫了。") == (0, 2)
    answers, near, far = ["一只狗跑来", "两只猫睡着"], "一只狗跑来", "三头牛在吃草"
    same, other = (text_scores(answers, [reference, answers[1]])["bleu1"] for reference in (near, far))
    assert same.value > other.value
