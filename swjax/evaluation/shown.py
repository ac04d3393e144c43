"""How scores are shown: those of every evaluation, and those that benchmarks bring."""

from swjax.evaluation.benchmarks import Metric, benchmark_names, find_benchmark

_TIMING = {
    "f1_0": Metric("F1, same frame", "{:.2f}"),
    "f1_1": Metric("F1, within a frame", "{:.2f}", is_main=False),
    "precision_0": Metric("precision, same frame", "{:.2f}", is_main=False),
    "recall_0": Metric("recall, same frame", "{:.2f}", is_main=False),
    "exact": Metric("all at its frame", "{:.1%}"),
    "right_words": Metric("right words", "{:.1%}", is_main=False),
    "right_words_in_time": Metric("right words at their frame", "{:.1%}"),
    "delay_s_1": Metric("delay (s)", "{:.2f}", is_main=False),
    "false_alarms_per_minute_0": Metric("false alarms a minute", "{:.1f}", is_main=False),
}

_COMMON = {
    "fluency": Metric("fluency", "{:.2f}", "fluency (1 to 5)"),
    "perplexity": Metric("perplexity", "{:.2f}", is_main=False),
    "loss": Metric("loss", "{:.3f}", "loss (nats a token)", is_main=False),
    "repetition": Metric("repetition", "{:.1%}", is_main=False),
    "fragments": Metric("fragments", "{:.1%}"),
    "ended": Metric("ended by itself", "{:.1%}", is_main=False),
    "words": Metric("tokens", "{:.1f}", is_main=False),
    "first_word_s": Metric("first token (s)", "{:.2f}", "first token after (s)", is_main=False),
    "word_s": Metric("mean token (s)", "{:.2f}", "mean token after (s)", is_main=False),
    "lag_s": Metric("lag (s)", "{:.2f}", "average lagging (s)", is_main=False),
}


def known_metrics() -> dict[str, Metric]:
    """How each known score is shown, by its name, in the order of the columns: those of benchmarks first."""
    found: dict[str, Metric] = {}
    for name in benchmark_names():
        found |= find_benchmark(name).metrics
    return found | _TIMING | _COMMON


def metric_of(name: str) -> Metric:
    """How a score is shown; one that no benchmark brings (`--metric`), under its own name."""
    return known_metrics().get(name, Metric(name))
