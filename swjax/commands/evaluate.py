"""`swjax evaluate`: how good a checkpoint is on videos that it has not seen."""

import argparse
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track

from swjax.commands.evaluate_judge import add_judge_arguments, check_judge_arguments, judge_fluency
from swjax.commands.evaluate_table import show_scores
from swjax.commands.say import UsageError, add_checkpoint_arguments, console, refuse, refusing

if TYPE_CHECKING:  # at run time they are imported where they are used, so that --help is quick
    from swjax.conversion.streaming_model import StreamingModel
    from swjax.data.example import Rejected, VideoExample
    from swjax.evaluation import Prediction, Score
    from swjax.evaluation.predictions import PredictionFile

NAME = "evaluate"
HELP = "measure a checkpoint on held-out videos"

DESCRIPTION = """\
Measure a checkpoint on held-out videos: the loss of their captions, and what the model itself says when it streams
them. predictions.jsonl receives a line a video as it goes (tokens, the newest frame that each could see, their times);
stopped at any time and started again, the same command goes on behind the last line. scores.json holds the scores,
each with its 95 % bootstrap interval over videos.

With the extra `eval` answers are compared with the captions by CIDEr, BLEU-1, BLEU-4 and ROUGE-L, with --meteor by
METEOR 1.5 (which needs Java). --metric adds one of your own, such as BLEURT with the weights that you have. Repetition
is the share of 4-grams that an answer has said before, fragments the share of sentences that break off, begin in the
middle or have fewer than three words.

--judge-url has a language model grade the fluency of every answer, from 1 to 5; grades are kept, so that none is paid
for twice.

Beside a manifest of Moving Shapes (with events.jsonl) the captions are parsed: event accuracy is the share of events
that are said exactly, in order, with nothing else said; grammatical the share of captions that the grammar derives.
--baselines scores two more: the best constant answer (whichever training caption does best when it is said about
every video) and the same model shown blank frames.

--schedule random perturbs the schedule: after each frame 0 to 2k tokens are spoken instead of k, each count as likely.
"""
EXAMPLE = """\
examples:
  swjax evaluate --checkpoint runs/moving_shapes --data data/moving_shapes/test/manifest.jsonl --baselines
  swjax evaluate --checkpoint runs/pe_video --data data/records/pe_video:test --schedule random --schedule-seed 1
  swjax evaluate --checkpoint runs/pe_video --data data/records/pe_video:test --metric bleurt=my_bleurt.py:score
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--data",
        "--manifest",
        required=True,
        metavar="NAME",
        help="the held-out videos: a manifest, or prepared records and their split (FOLDER:test)",
    )
    parser.add_argument(
        "--events", type=Path, metavar="FILE", help="what happens in Moving Shapes (default: beside the manifest)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N videos")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="(default: evaluation, or evaluation_random_N, in the checkpoint)",
    )
    parser.add_argument("--overwrite", action="store_true", help="begin anew where there are predictions")
    parser.add_argument("--max-tail", type=int, default=300, help="limit on tokens after the last frame (default: 300)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="the paper's is 1.15 (default: 1, none)")
    parser.add_argument("--schedule", choices=("fixed", "random"), default="fixed", help="(default: fixed, wait-k)")
    parser.add_argument("--schedule-seed", type=int, default=0, metavar="N", help="of random schedules (default: 0)")
    parser.add_argument("--meteor", action="store_true", help="METEOR too; needs Java")
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME=FILE.py:FUNCTION",
        help="a metric of your own: a function of the answers and the references that returns a number for each",
    )
    add_judge_arguments(parser)
    parser.add_argument("--baselines", action="store_true", help="score the two baselines as well (Moving Shapes)")
    parser.add_argument(
        "--train-manifest", metavar="NAME", help="constant answers to choose from (default: the run's training data)"
    )
    parser.add_argument(
        "--results-format",
        choices=("authors",),
        help="write results.jsonl as well: video_id, annotation, task and result, as the paper's authors keep theirs",
    )
    parser.add_argument("--task", help="the task in results.jsonl (default: FunQA's by the key, else description)")


@dataclass(frozen=True)
class _Task:
    """What is evaluated: the model with its tokenizer, the examples, and how they are spoken about."""

    source: "StreamingModel"
    tokenizer: Any
    examples: "Sequence[VideoExample]"
    args: argparse.Namespace
    folder: Path
    settings: dict[str, Any]


@refusing
def run(args: argparse.Namespace) -> int:
    """Evaluate, print a table and write the files."""
    from swjax.conversion.streaming_model import load_streaming_model
    from swjax.data.sources import open_source
    from swjax.data.tokenizer import load_tokenizer
    from swjax.evaluation import read_events, score_predictions
    from swjax.evaluation.predictions import RESULTS, write_authors_results
    from swjax.evaluation.scores import to_row

    out = console()
    if args.output is None and not Path(args.checkpoint).is_dir():
        raise UsageError(f"{args.checkpoint} is no folder here to write the scores to; give --output")
    check_judge_arguments(args)
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit {args.limit} leaves no videos; give at least 1")
    if not args.repetition_penalty > 0:
        raise UsageError(f"--repetition-penalty is {args.repetition_penalty}; it must be above 0")
    own = _own_metrics(args.metric)
    folder = args.output or Path(args.checkpoint) / _folder_name(args)
    data = open_source(args.data)
    source = load_streaming_model(args.checkpoint, step=args.step)
    examples = data.examples[: args.limit]
    task = _Task(source, load_tokenizer(source.tokenizer), examples, args, folder, _settings(args, source))

    predictions, rejected = _watch(task, "predictions.jsonl", "watching")
    if not predictions:
        return refuse(f"no video of {args.data} could be used; the first reason: {rejected[0].reason}")
    from swjax.commands.evaluate_loss import caption_losses

    events_file = args.events or Path(args.data).parent / "events.jsonl"
    events = read_events(events_file) if args.events or events_file.exists() else None
    scores = caption_losses(source, task.tokenizer, examples)
    scores |= score_predictions(
        predictions, events=events, references=_has_packages(args, out), meteor=args.meteor, own=own
    )
    if args.judge_url:
        scores["fluency"] = judge_fluency(args, folder, predictions)
    rows = {"model": to_row(scores, videos=len(predictions))}
    if args.baselines:
        rows |= _baselines(task, events_file, [prediction.key for prediction in predictions])
    (folder / "scores.json").write_text(json.dumps(rows, indent=2) + "\n")
    if args.results_format == "authors":
        write_authors_results(folder / RESULTS, predictions, task=args.task)
    out.print(f"{args.checkpoint} on {len(predictions)} videos of {args.data}", soft_wrap=True)
    show_scores(out, rows)
    _list_rejected(out, [*data.rejected, *rejected])
    out.print(f"written: {folder / 'scores.json'}, {folder / 'predictions.jsonl'}", soft_wrap=True)
    return 0


def _folder_name(args: argparse.Namespace) -> str:
    return "evaluation" if args.schedule == "fixed" else f"evaluation_random_{args.schedule_seed}"


def _settings(args: argparse.Namespace, source: "StreamingModel") -> dict[str, Any]:
    """All that predictions depend on."""
    from dataclasses import asdict

    from swjax.conversion.parameters import fingerprint, split_parameters
    from swjax.data.chat import EVALUATION_QUESTION

    return {
        "weights": fingerprint(split_parameters(source.model)[1]),
        "data": str(args.data),
        "question": EVALUATION_QUESTION,
        **asdict(source.record),
        "max_tail": args.max_tail,
        "repetition_penalty": args.repetition_penalty,
        "schedule": args.schedule,
        "schedule_seed": args.schedule_seed if args.schedule == "random" else None,
    }


def _watch(
    task: _Task, name: str, doing: str, change: "Callable[[Iterable[Any]], Iterable[Any]] | None" = None
) -> "tuple[list[Prediction], list[Rejected]]":
    """What the model says about every video, its frames changed if so asked, and the videos that were no use.

    Videos whose predictions are on disk are not watched again.
    """
    from swjax.data.chat import EVALUATION_QUESTION
    from swjax.data.patches import TEMPORAL_PATCH_SIZE
    from swjax.evaluation import Prediction, perturbed_schedule, predict
    from swjax.evaluation.predictions import open_predictions
    from swjax.inference import Engine, Sampling, StreamSettings, read_frames
    from swjax.streaming import Variant

    args, record = task.args, task.source.record
    file: PredictionFile = open_predictions(task.folder, task.settings, name=name, overwrite=args.overwrite)
    left = [example for example in task.examples if example.key not in file.found]
    read = functools.partial(read_frames, fps=record.fps, min_pixels=record.min_pixels, max_pixels=record.max_pixels)
    outcomes = predict(
        Engine(task.source.model),
        task.tokenizer,
        left,
        question=EVALUATION_QUESTION,
        settings=StreamSettings(
            variant=Variant(record.variant),
            wait_k=record.wait_k,
            gap=record.gap,
            second_per_grid_t=TEMPORAL_PATCH_SIZE / record.fps,
            max_tail=args.max_tail,
            sampling=Sampling(repetition_penalty=args.repetition_penalty),
        ),
        read=lambda example: (change or iter)(read(example.video)),
        schedule=perturbed_schedule(record.wait_k, args.schedule_seed) if args.schedule == "random" else None,
    )
    rejected = []
    for outcome in track(outcomes, doing, total=len(left), transient=True):
        if isinstance(outcome, Prediction):
            file.append(outcome)
        else:
            rejected.append(outcome)
    return [file.found[example.key] for example in task.examples if example.key in file.found], rejected


def _baselines(task: _Task, events_file: Path, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Scores of the best constant answer, and of the same model shown blank frames, on the same videos."""
    from swjax.conversion.run_folder import MODEL, read_run_config
    from swjax.data.sources import open_source
    from swjax.evaluation import best_constant_answer, blank_frames, read_events, score_captions
    from swjax.evaluation.scores import to_row

    args = task.args
    events = {key: happened for key, happened in read_events(events_file).items() if key in set(keys)}
    train = args.train_manifest
    if train is None and (Path(args.checkpoint) / MODEL).exists():
        train = read_run_config(args.checkpoint)["data"]["train"]
    if train is None:
        raise UsageError("--baselines chooses a constant answer from training captions; give --train-manifest")
    answer, _ = best_constant_answer([example.caption for example in open_source(train).examples], events)
    blank, _ = _watch(task, "blank_frames.jsonl", "watching blank frames", blank_frames)

    def row(captions: dict[str, str]) -> dict[str, Any]:
        scores: dict[str, Score] = score_captions(captions, events)
        return to_row(scores, videos=len(captions))

    return {
        "best constant answer": {"answer": answer, **row(dict.fromkeys(events, answer))},
        "model, blank frames": row({prediction.key: prediction.text for prediction in blank}),
    }


def _own_metrics(named: Sequence[str]) -> dict[str, str]:
    metrics = {}
    for word in named:
        name, equals, place = word.partition("=")
        if not (name.isidentifier() and equals and ":" in place):
            raise UsageError(f"--metric {word} is not of the form NAME=FILE.py:FUNCTION")
        metrics[name] = place
    return metrics


def _has_packages(args: argparse.Namespace, out: Console) -> bool:
    """Whether answers can be compared with references; where that was asked for, the scores themselves complain."""
    import importlib.util

    if args.meteor or all(importlib.util.find_spec(name) for name in ("sacrebleu", "pycocoevalcap")):
        return True
    out.print("[dim]CIDEr, BLEU and ROUGE-L are left out: they need the extra `eval` (pip install 'swjax\\[eval]')[/]")
    return False


def _list_rejected(out: Console, skipped: "Sequence[Rejected]") -> None:
    if skipped:
        out.print(f"{len(skipped)} examples could not be used:")
        for example in skipped[:10]:
            out.print(f"  {example.where}: {example.reason}", markup=False, soft_wrap=True)
