"""What `swjax evaluate` scores answers by: the benchmarks that it is told or that fit the data, and their baselines."""

import argparse
import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from swjax.commands.evaluate_watch import Watch
from swjax.commands.say import UsageError, any_path
from swjax.plain import Json, JsonView
from swjax.storage import AnyPath, as_path

if TYPE_CHECKING:
    from swjax.data.example import VideoExample

Truths = Mapping[str, JsonView]
"""What benchmarks know of videos: by the benchmark's name, then by the video's key."""


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that say what answers are measured by."""
    parser.add_argument(
        "--benchmark",
        nargs="+",
        metavar="NAME",
        help="what to score by: moving_shapes, captions (default: each that has what it needs)",
    )
    parser.add_argument(
        "--events", type=any_path, metavar="FILE", help="what happens in Moving Shapes (default: beside the manifest)"
    )
    parser.add_argument("--meteor", action="store_true", help="METEOR too; needs Java")
    parser.add_argument("--baselines", action="store_true", help="score the two baselines as well (Moving Shapes)")
    parser.add_argument(
        "--train-manifest", metavar="NAME", help="constant answers to choose from (default: the run's training data)"
    )


def check_benchmark_arguments(args: argparse.Namespace) -> None:
    """Refuse benchmarks that there are not, and baselines that no benchmark has, before anything is watched."""
    from swjax.evaluation.benchmarks import benchmark_names, find_benchmark

    if args.baselines and args.benchmark and not any(find_benchmark(name).constant for name in args.benchmark):
        have = [name for name in benchmark_names() if find_benchmark(name).constant]
        raise UsageError(f"--baselines needs a benchmark that has them: {', '.join(have)}")
    for name in args.benchmark or ():
        find_benchmark(name)


def read_truths(args: argparse.Namespace, examples: "Sequence[VideoExample]", out: Console) -> Truths:
    """What each benchmark that is to be scored by knows of the videos.

    Args:
        args: of the verb, with those of `add_benchmark_arguments`.
        examples: the videos. Their captions are what is known for benchmarks that read no file of their own.
        out: where it is said that a benchmark is left out.
    """
    from swjax.evaluation.benchmarks import find_benchmark

    names = args.benchmark or _fitting(args, out)
    if args.meteor:
        names = dict.fromkeys([*(name for name in names if name != "captions"), "captions_meteor"])
    references = {example.key: example.caption for example in examples}
    truths: dict[str, JsonView] = {}
    for name in names:
        benchmark = find_benchmark(name)
        truths[name] = references if benchmark.read is None else benchmark.read(_file(args, benchmark.file))
    return truths


def score_baselines(task: Watch, truths: Truths, keys: Sequence[str]) -> dict[str, Json]:
    """Scores of each benchmark's best constant answer, and of the same model shown blank frames, on the same videos.

    Args:
        task: what was watched; blank frames are watched in the same way.
        truths: from `read_truths`. Benchmarks without a constant answer are left out.
        keys: of the videos that were watched.

    Returns:
        A row a baseline, by its title.

    Raises:
        UsageError: if there are no training captions to choose a constant answer from.
    """
    from swjax.data.example import Rejected
    from swjax.data.sources import open_source, readable_examples
    from swjax.evaluation import Score, blank_frames
    from swjax.evaluation.benchmarks import find_benchmark
    from swjax.evaluation.scores import to_row
    from swjax.runs.folder import MODEL, read_run_config

    args = task.args
    train = args.train_manifest
    if train is None and (as_path(args.checkpoint) / MODEL).exists():
        train = read_run_config(args.checkpoint)["data"]["train"]
    if train is None:
        raise UsageError("--baselines chooses a constant answer from training captions; give --train-manifest")
    captions = [
        example.caption
        for example in readable_examples(open_source(train).examples)
        if not isinstance(example, Rejected)
    ]
    blank, _ = task.watch("blank_frames.jsonl", "watching blank frames", blank_frames)
    rows: dict[str, Json] = {}
    of_blank: dict[str, Score] = {}
    for name, of_all in truths.items():
        benchmark = find_benchmark(name)
        if benchmark.constant is None:
            continue
        known = {key: truth for key, truth in of_all.items() if key in set(keys)}
        answer, _ = benchmark.constant(captions, known)
        scores = benchmark.score(dict.fromkeys(known, answer), known)
        title = f"best constant answer of {name}" if rows else "best constant answer"
        rows[title] = {"answer": answer, **to_row(scores, videos=len(known))}
        of_blank |= benchmark.score({prediction.key: prediction.text for prediction in blank}, known)
    return rows | {"model, blank frames": to_row(of_blank, videos=len(blank))}


def _file(args: argparse.Namespace, name: str) -> AnyPath:
    return args.events or as_path(args.data).parent / name


def _fitting(args: argparse.Namespace, out: Console) -> list[str]:
    """Moving Shapes beside its events, and captions where their packages are installed."""
    from swjax.evaluation.benchmarks import find_benchmark

    events = _file(args, find_benchmark("moving_shapes").file)
    names = ["moving_shapes"] if args.events or args.baselines or events.exists() else []
    if args.meteor or all(importlib.util.find_spec(name) for name in find_benchmark("captions").packages):
        return [*names, "captions"]
    out.print("[dim]CIDEr, BLEU and ROUGE-L are left out: they need the extra `eval` (pip install 'swjax\\[eval]')[/]")
    return names
