"""Captions beside the references of the data set, as the captioning field compares them."""

from collections.abc import Mapping

from swjax.evaluation.benchmarks.benchmark import Benchmark, Metric
from swjax.evaluation.bootstrap import Score
from swjax.evaluation.metrics import text_scores

_METRICS = {
    "cider": Metric("CIDEr", "{:.1f}"),
    "bleu1": Metric("BLEU-1", "{:.1f}", is_main=False),
    "bleu4": Metric("BLEU-4", "{:.1f}"),
    "meteor": Metric("METEOR", "{:.1f}"),
    "rouge_l": Metric("ROUGE-L", "{:.1f}"),
}


def _score(answers: Mapping[str, str], references: Mapping[str, str]) -> dict[str, Score]:
    return text_scores(list(answers.values()), [references[key] for key in answers])


def _score_with_meteor(answers: Mapping[str, str], references: Mapping[str, str]) -> dict[str, Score]:
    return text_scores(list(answers.values()), [references[key] for key in answers], meteor=True)


CAPTIONS = Benchmark(_score, _METRICS, packages=("sacrebleu", "pycocoevalcap"))
CAPTIONS_METEOR = Benchmark(_score_with_meteor, _METRICS, packages=CAPTIONS.packages)
"""The same with METEOR, which takes Java."""
