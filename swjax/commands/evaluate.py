"""`swjax evaluate`: how good a checkpoint is on videos that it has not seen."""

import argparse
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from swjax.commands.say import UsageError, add_checkpoint_arguments, console, refuse, refusing

if TYPE_CHECKING:  # at run time they are imported where they are used, so that --help is quick
    from swjax.conversion.streaming_model import StreamingModel
    from swjax.data.example import Rejected, VideoExample
    from swjax.data.manifest import Manifest
    from swjax.evaluation import Prediction

NAME = "evaluate"
HELP = "measure a checkpoint on held-out videos"

DESCRIPTION = """\
Measure a checkpoint on held-out videos: the loss of their captions, and what the model itself says when it streams
them. predictions.jsonl holds a line a video, scores.json the scores.

Beside a manifest of Moving Shapes (with events.jsonl) the captions are parsed: event accuracy is the share of events
that are said exactly, in order, with nothing else said; grammatical the share of captions that the grammar derives.
--baselines scores two more: the best constant answer (whichever training caption does best when it is said about
every video) and the same model shown blank frames. With the extra `eval` installed, BLEU-4 is added.
"""
EXAMPLE = (
    "example: swjax evaluate --checkpoint runs/moving_shapes --manifest data/moving_shapes/test/manifest.jsonl "
    "--baselines"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add_checkpoint_arguments(parser)
    parser.add_argument("--manifest", required=True, type=Path, metavar="FILE", help="the held-out videos")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N videos")
    parser.add_argument("--output", type=Path, metavar="DIR", help="(default: evaluation in the checkpoint's folder)")
    parser.add_argument("--max-tail", type=int, default=300, help="limit on tokens after the last frame (default: 300)")
    parser.add_argument("--baselines", action="store_true", help="score the two baselines as well (Moving Shapes)")
    parser.add_argument(
        "--train-manifest", type=Path, metavar="FILE", help="constant answers to choose from (default: the run's)"
    )


@dataclass(frozen=True)
class _Task:
    """What is evaluated: the model with its tokenizer, and the examples with the folder that they stand in."""

    source: "StreamingModel"
    tokenizer: Any
    examples: "Sequence[VideoExample]"
    manifest: Path


@refusing
def run(args: argparse.Namespace) -> int:
    """Evaluate, print a table and write the files."""
    from swjax.conversion.streaming_model import load_streaming_model
    from swjax.data.manifest import read_manifest
    from swjax.data.tokenizer import load_tokenizer

    out = console()
    if args.output is None and not Path(args.checkpoint).is_dir():
        raise UsageError(f"{args.checkpoint} is no folder here to write the scores to; give --output")
    folder = args.output or Path(args.checkpoint) / "evaluation"
    manifest = read_manifest(args.manifest)
    source = load_streaming_model(args.checkpoint, step=args.step)
    task = _Task(source, load_tokenizer(source.tokenizer), manifest.examples[: args.limit], args.manifest)
    folder.mkdir(parents=True, exist_ok=True)

    rows: dict[str, dict[str, Any]] = {"model": {"loss": _mean_loss(task)}}
    predictions, rejected = _stream_all(task, args.max_tail, "watching")
    if not predictions:
        return refuse(f"no video of {args.manifest} could be used; the first reason: {rejected[0].reason}")
    _write_lines(folder / "predictions.jsonl", map(asdict, predictions))
    rows["model"] |= _bleu(predictions, out)
    events_file = args.manifest.parent / "events.jsonl"
    if events_file.exists():
        rows["model"] |= _shapes(predictions, events_file)
    if args.baselines:
        rows |= _baselines(task, args, events_file, [prediction.key for prediction in predictions])
    (folder / "scores.json").write_text(json.dumps(rows, indent=2) + "\n")
    _show(out, rows, len(predictions), args)
    _list_rejected(out, manifest, rejected)
    out.print(f"written: {folder / 'scores.json'}, {folder / 'predictions.jsonl'}", soft_wrap=True)
    return 0


def _mean_loss(task: _Task) -> float:
    """Mean cross entropy of the captions' tokens, in nats."""
    import jax
    import numpy as np

    from swjax.conversion.parameters import merge_parameters, split_parameters
    from swjax.data.pipeline import PipelineConfig, build_pipeline
    from swjax.data.rejected import RejectedLog
    from swjax.training.loss import count_labels, summed_loss

    record = task.source.record
    max_tokens, max_patches = _row_lengths(task)
    config = PipelineConfig(
        batch_size=min(16, len(task.examples)),
        max_tokens=max_tokens,
        max_patches=max_patches,
        variant=record.variant,
        wait_k=record.wait_k,
        gap=record.gap,
        fps=record.fps,
        min_pixels=record.min_pixels,
        max_pixels=record.max_pixels,
    )
    batches = build_pipeline(task.examples, config, task.tokenizer, train=False, rejected=RejectedLog(max_share=1.0))
    structure, parameters = split_parameters(task.source.model)

    @jax.jit
    def sums(parameters: Any, batch: Any) -> Any:
        model = merge_parameters(structure, parameters)
        return summed_loss(model, batch, max_labels=config.max_tokens), count_labels(batch["labels"])

    steps = -(-len(task.examples) // config.batch_size)
    totals = [sums(parameters, batch) for batch in track(batches, "reading captions", total=steps, transient=True)]
    loss, labels = np.sum(jax.device_get(totals), axis=0)
    return float(loss / labels)


def _row_lengths(task: _Task) -> tuple[int, int]:
    """Tokens and patches that hold the longest example, by the durations that the manifest gives."""
    from swjax.data.chat import EVALUATION_QUESTION, encode_chat
    from swjax.data.patches import MERGE_SIZE, PATCH_SIZE, TEMPORAL_PATCH_SIZE

    record = task.source.record
    longest_s = max(example.duration_s for example in task.examples)
    frames = int(longest_s * record.fps / TEMPORAL_PATCH_SIZE) + 1
    patches = frames * (record.max_pixels // PATCH_SIZE**2)
    texts = {(example.question or EVALUATION_QUESTION, example.caption) for example in task.examples}
    text_tokens = max(
        len(encode_chat(task.tokenizer, question=question, answer=answer, video_grid_thw=(1, 2, 2)))
        for question, answer in texts
    )
    return text_tokens + patches // MERGE_SIZE**2, patches


def _stream_all(
    task: _Task, max_tail: int, doing: str, change: "Callable[[Iterable[Any]], Iterable[Any]] | None" = None
) -> "tuple[list[Prediction], list[Rejected]]":
    """What the model says about every video, its frames changed if so asked, and the videos that were no use."""
    from swjax.data.chat import EVALUATION_QUESTION
    from swjax.data.patches import TEMPORAL_PATCH_SIZE
    from swjax.evaluation import Prediction, predict
    from swjax.inference import Engine, StreamSettings, read_frames
    from swjax.streaming import Variant

    record = task.source.record
    read = functools.partial(read_frames, fps=record.fps, min_pixels=record.min_pixels, max_pixels=record.max_pixels)
    outcomes = predict(
        Engine(task.source.model),
        task.tokenizer,
        task.examples,
        question=EVALUATION_QUESTION,
        settings=StreamSettings(
            variant=Variant(record.variant),
            wait_k=record.wait_k,
            gap=record.gap,
            second_per_grid_t=TEMPORAL_PATCH_SIZE / record.fps,
            max_tail=max_tail,
        ),
        read=lambda example: (change or iter)(read(example.video)),
    )
    shown = list(track(outcomes, doing, total=len(task.examples), transient=True))
    predictions = [outcome for outcome in shown if isinstance(outcome, Prediction)]
    return predictions, [outcome for outcome in shown if not isinstance(outcome, Prediction)]


def _shapes(predictions: "Sequence[Prediction]", events_file: Path) -> dict[str, Any]:
    from swjax.evaluation import read_events, score_captions

    return asdict(score_captions({p.key: p.text for p in predictions}, read_events(events_file)))


def _baselines(
    task: _Task, args: argparse.Namespace, events_file: Path, keys: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Scores of the best constant answer, and of the same model shown blank frames, on the same videos."""
    from swjax.conversion.run_folder import MODEL, read_run_config
    from swjax.data.manifest import read_manifest
    from swjax.evaluation import best_constant_answer, blank_frames, read_events, score_captions

    events = {key: happened for key, happened in read_events(events_file).items() if key in set(keys)}
    train = args.train_manifest
    if train is None and (Path(args.checkpoint) / MODEL).exists():
        train = read_run_config(args.checkpoint)["data"]["train"]
    if train is None:
        raise UsageError("--baselines chooses a constant answer from training captions; give --train-manifest")
    answer, _ = best_constant_answer([example.caption for example in read_manifest(train).examples], events)
    blank, _ = _stream_all(task, args.max_tail, "watching blank frames", blank_frames)
    return {
        "best constant answer": {"answer": answer, **asdict(score_captions(dict.fromkeys(events, answer), events))},
        "model, blank frames": _shapes(blank, events_file),
    }


def _bleu(predictions: "Sequence[Prediction]", out: Console) -> dict[str, float]:
    try:
        import sacrebleu
    except ImportError:
        out.print("[dim]BLEU-4 is left out: it needs the extra `eval` (pip install 'swjax\\[eval]')[/]")
        return {}
    bleu = sacrebleu.corpus_bleu([p.text for p in predictions], [[p.reference for p in predictions]])
    return {"bleu4": bleu.score}


def _show(out: Console, rows: dict[str, dict[str, Any]], videos: int, args: argparse.Namespace) -> None:
    columns = {
        "loss": ("loss (nats a token)", "{:.3f}"),
        "event_accuracy": ("event accuracy", "{:.1%}"),
        "grammatical": ("grammatical", "{:.1%}"),
        "bleu4": ("BLEU-4", "{:.1f}"),
    }
    present = {name: column for name, column in columns.items() if any(name in scores for scores in rows.values())}
    out.print(f"{args.checkpoint} on {videos} videos of {args.manifest}", soft_wrap=True)
    table = Table()
    table.add_column("", no_wrap=True)
    for heading, _ in present.values():
        table.add_column(heading, justify="right")
    for name, scores in rows.items():
        table.add_row(name, *(form.format(scores[key]) if key in scores else "" for key, (_, form) in present.items()))
    out.print(table)


def _list_rejected(out: Console, manifest: "Manifest", rejected: "Sequence[Rejected]") -> None:
    skipped = [*manifest.rejected, *rejected]
    if skipped:
        out.print(f"{len(skipped)} examples could not be used:")
        for example in skipped[:10]:
            out.print(f"  {example.where}: {example.reason}", markup=False, soft_wrap=True)


def _write_lines(file: Path, records: Iterable[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
