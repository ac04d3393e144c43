"""A benchmark from outside, through the public API alone, and the table of benchmarks."""

import json

import pytest

from swjax.evaluation import EvaluationError, Prediction, score_predictions
from swjax.evaluation.benchmarks import Benchmark, Metric, benchmark_names, find_benchmark, register_benchmark
from swjax.evaluation.bootstrap import mean_score
from swjax.evaluation.metrics import text_scores
from swjax.evaluation.report import markdown_table, scale
from swjax.evaluation.shown import known_metrics


def read_words(path):
    return json.loads(path.read_text())


def say_word(answers, words):
    """Official: the word is anywhere in the answer. Strict: it is the answer."""
    official = [words[key] in text for key, text in answers.items()]
    return {
        "toy_official": mean_score(official),
        "toy_strict": mean_score([words[key] == text for key, text in answers.items()]),
    }


TOY = Benchmark(
    say_word,
    {"toy_official": Metric("toy", "{:.1%}"), "toy_strict": Metric("toy, strict", "{:.1%}", is_main=False)},
    read=read_words,
    file="words.json",
)


@pytest.fixture(scope="module")
def toy():
    register_benchmark("toy_words", TOY)
    return "toy_words"


def predict(key, text, reference="a red circle"):
    return Prediction(key, reference, text, True, 1, 1.0, (1,), (text,), (0,), (1.0,), (0.1,), (0.0,), "parallel", 1)


def test_a_benchmark_from_outside_is_scored_beside_the_others(toy):
    predictions = [predict("a", "red"), predict("b", "blue and red"), predict("c", "green")]
    truths = {toy: dict.fromkeys("abc", "red"), "captions": {p.key: p.reference for p in predictions}}
    scores = score_predictions(predictions, truths=truths)
    assert scores["toy_official"].value == pytest.approx(2 / 3)
    assert scores["toy_strict"].value == pytest.approx(1 / 3)
    of_captions = text_scores([p.text for p in predictions], [p.reference for p in predictions])
    assert {name: scores[name] for name in of_captions} == of_captions
    assert "event_accuracy" not in scores


def test_its_scores_are_shown_as_it_says(toy):
    assert "toy_strict" in known_metrics()
    assert scale("toy_official") == 100
    row = {"run": "r", "seed": 0, "schedule": "fixed", "toy_official": 0.25}
    row |= {"toy_official_low": 0.1, "toy_official_high": 0.4}
    assert markdown_table([row]).splitlines()[0].endswith("| toy (%) |")
    assert "25.00" in markdown_table([row])


def test_names(toy):
    assert {"moving_shapes", "captions", "captions_meteor", toy} <= set(benchmark_names())
    assert find_benchmark(toy) is TOY
    register_benchmark(toy, TOY)
    with pytest.raises(ValueError, match="there is a benchmark 'captions' already"):
        register_benchmark("captions", TOY)
    with pytest.raises(EvaluationError, match="unknown benchmark 'none'; choose from: moving_shapes, captions"):
        find_benchmark("none")
    with pytest.raises(ValueError, match="a file and the function that reads it"):
        Benchmark(say_word, {}, file="words.json")
