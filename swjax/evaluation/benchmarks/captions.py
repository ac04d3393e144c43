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


def _score(answers: Mapping[str, str], references: Mapping[str, str], *, meteor: bool = False) -> dict[str, Score]:
    """Of videos whose reference says something: where silence is right, there is no caption to compare with."""
    told = [key for key in answers if references[key]]
    if not told:
        return {}
    return text_scores([answers[key] for key in told], [references[key] for key in told], meteor=meteor)


def _score_with_meteor(answers: Mapping[str, str], references: Mapping[str, str]) -> dict[str, Score]:
    return _score(answers, references, meteor=True)


CAPTIONS = Benchmark(_score, _METRICS, packages=("sacrebleu", "pycocoevalcap"))
CAPTIONS_METEOR = Benchmark(_score_with_meteor, _METRICS, packages=CAPTIONS.packages)
"""The same with METEOR, which takes Java."""
