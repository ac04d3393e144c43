"""`swjax evaluate`: how good a checkpoint is on videos that it has not seen."""

import argparse
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from swjax.atomic import write_json
from swjax.commands.evaluate_benchmarks import (
    Truths,
    add_benchmark_arguments,
    check_benchmark_arguments,
    read_truths,
    score_baselines,
)
from swjax.commands.evaluate_judge import add_judge_arguments, check_judge_arguments, judge_fluency
from swjax.commands.evaluate_table import show_scores
from swjax.commands.evaluate_watch import MODES, Watch, choose_mode
from swjax.commands.memory_arguments import add_memory_arguments, read_drop, read_memory
from swjax.commands.mesh_arguments import add_mesh_argument, load_on_mesh, read_mesh
from swjax.commands.say import UsageError, add_checkpoint_arguments, any_path, console, refuse, refusing
from swjax.commands.speaking_arguments import add_speaking_arguments
from swjax.storage import AnyPath, as_path
from swjax.streaming.spec import StreamSpec

if TYPE_CHECKING:  # at run time they are imported where they are used, so that --help is quick
    from swjax.commands.evaluate_loss import CaptionLosses
    from swjax.data.example import Rejected
    from swjax.evaluation import Prediction

NAME = "evaluate"
HELP = "measure a checkpoint on held-out videos"

DESCRIPTION = """\
Measure a checkpoint on held-out videos: the loss of their captions, and what the model itself says when it streams
them. predictions.jsonl receives a line a video as it goes (tokens, the newest frame that each could see, their times);
stopped at any time and started again, the same command goes on behind the last line. scores.json holds the scores,
each with its 95 % bootstrap interval over videos.

Videos are streamed --rows at a time; a video that ends makes room for the next. What is said depends neither on the
rows nor on the --mode, which says what the engine does at a time, except for mode offline: the whole video comes first
then, whatever the schedule. How long words took is in scores.json under `wall`, apart from the scores: frames are
handed over as fast as the engine takes them.

With the extra `eval` answers are compared with the captions by CIDEr, BLEU-1, BLEU-4 and ROUGE-L, with --meteor by
METEOR 1.5 (which needs Java). --metric adds one of your own, such as BLEURT with the weights that you have. Repetition
is the share of 4-grams that an answer has said before, fragments the share of sentences that break off, begin in the
middle or have fewer than three words.

Videos are measured, whatever the data set claims. One that needs more than 1,048,576 / --rows slots (one for each of
its tokens) is skipped and listed, as is one that cannot be read. Of several turns about a video the first is asked
before it; the others are asked when it has ended, each behind the model's own answer to the one before, and have a
column of scores of their own. The loss is of all turns.

Beside a manifest of Moving Shapes (with events.jsonl) the captions are parsed: event accuracy is the share of events
that are said exactly, in order, with nothing else said; grammatical the share of captions that the grammar derives.
--baselines scores two more: the best constant answer (whichever training caption does best when it is said about
every video) and the same model shown blank frames.

Of a model that decides when to speak (config.speaking=decide), and a manifest with `sentences`, it is scored when it
spoke: F1 of utterances at the very frame and within one, delays, false alarms a minute, and the share of videos in
which all was said at its frame and nothing else; beside speakers that see nothing. --speak chooses another rule or
threshold.

--schedule random perturbs the schedule: after each frame 0 to 2k tokens are spoken instead of k, each count as likely.
Several seeds are evaluated one after another, each into a folder of its own. Loss and perplexity are those of captions
read at wait-k, whatever the schedule.
"""
EXAMPLE = """\
examples:
  swjax evaluate --checkpoint runs/moving_shapes --data data/moving_shapes/test/manifest.jsonl --baselines
  swjax evaluate --checkpoint runs/pe_video --data data/records/pe_video:test --schedule random --schedule-seed 0 1 2
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
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N videos")
    parser.add_argument(
        "--output",
        type=any_path,
        metavar="DIR",
        help="(default: evaluation, or evaluation_random_N, in the checkpoint); several seeds have folders in it",
    )
    parser.add_argument("--overwrite", action="store_true", help="begin anew where there are predictions")
    parser.add_argument("--rows", type=int, default=8, metavar="N", help="videos at a time (default: 8)")
    parser.add_argument("--mode", choices=MODES, help="of the engine (default: the quickest that the variant allows)")
    parser.add_argument(
        "--max-tail",
        type=int,
        default=StreamSpec.max_tail,
        help="limit on tokens after the last frame (default: %(default)s)",
    )
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="the paper's is 1.15 (default: 1, none)")
    parser.add_argument("--schedule", choices=("fixed", "random"), default="fixed", help="(default: fixed, wait-k)")
    parser.add_argument(
        "--schedule-seed", type=int, nargs="+", default=[0], metavar="N", help="of random schedules (default: 0)"
    )
    add_speaking_arguments(parser)
    add_memory_arguments(parser)
    add_mesh_argument(parser)
    add_benchmark_arguments(parser)
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME=FILE.py:FUNCTION",
        help="a metric of your own: a function of the answers and the references that returns a number for each",
    )
    add_judge_arguments(parser)
    parser.add_argument(
        "--results-format",
        choices=("authors",),
        help="write results.jsonl as well: video_id, annotation, task and result, as the paper's authors keep theirs",
    )
    parser.add_argument("--task", help="the task in results.jsonl (default: FunQA's by the key, else description)")


@refusing
def run(args: argparse.Namespace) -> int:
    """Evaluate, print a table and write the files."""
    from swjax.commands.evaluate_loss import caption_losses
    from swjax.data.example import Rejected
    from swjax.data.sources import open_source, readable_examples
    from swjax.data.tokenizer import load_tokenizer
    from swjax.inference import Weights

    out = console()
    _check_arguments(args)
    data = open_source(args.data)
    mesh = read_mesh(args)
    source = load_on_mesh(args.checkpoint, mesh, step=args.step)
    mode = choose_mode(args.mode, source.record.variant)
    count = len(data.examples) if args.limit is None else args.limit
    read = list(itertools.islice(readable_examples(data.examples), count))
    examples = [example for example in read if not isinstance(example, Rejected)]
    damaged = [*data.rejected, *(example for example in read if isinstance(example, Rejected))]
    if not examples:
        return refuse(f"no example of {args.data} can be read; the first reason: {damaged[0].reason}")
    tokenizer = load_tokenizer(source.tokenizer, source.model.config.chat)
    weights = Weights(source.model, mesh)
    truths = read_truths(args, examples, out)
    losses: CaptionLosses | None = None
    for seed in args.schedule_seed if args.schedule == "random" else [None]:
        task = Watch(source, weights, tokenizer, examples, args, _folder(args, seed), mode, seed)
        predictions, rejected = task.watch("predictions.jsonl", "watching")
        if not predictions:
            return refuse(f"no video of {args.data} could be used; the first reason: {rejected[0].reason}")
        losses = caption_losses(source, tokenizer, examples) if losses is None else losses
        _write_scores(out, task, predictions, truths, losses)
        _list_rejected(out, [*damaged, *rejected])
        _explain_losses(out, losses, {video.where for video in rejected}, len(predictions))
        written = task.folder / "scores.json", task.folder / "predictions.jsonl"
        out.print(f"written: {', '.join(map(str, written))}", soft_wrap=True)
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    if args.output is None and not as_path(args.checkpoint).is_dir():
        raise UsageError(f"{args.checkpoint} is no folder here to write the scores to; give --output")
    if args.memory is not None:
        read_memory(args)
    if args.drop is not None:
        read_drop(args)
    check_judge_arguments(args)
    check_benchmark_arguments(args)
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit {args.limit} leaves no videos; give at least 1")
    if args.rows < 1:
        raise UsageError(f"--rows {args.rows} leaves no row to stream in; give at least 1")
    if not args.repetition_penalty > 0:
        raise UsageError(f"--repetition-penalty is {args.repetition_penalty}; it must be above 0")
    if len(set(args.schedule_seed)) < len(args.schedule_seed):
        raise UsageError(f"--schedule-seed {' '.join(map(str, args.schedule_seed))} names a seed twice")
    _own_metrics(args.metric)


def _folder(args: argparse.Namespace, seed: int | None) -> AnyPath:
    """Where the files of a schedule go; several seeds have a folder each."""
    from swjax.evaluation.sweep import evaluation_folder

    several = args.schedule == "random" and len(args.schedule_seed) > 1
    if args.output is not None and not several:
        return args.output
    return evaluation_folder(args.output or as_path(args.checkpoint), args.schedule, seed)


def _write_scores(
    out: Console,
    task: Watch,
    predictions: "Sequence[Prediction]",
    truths: Truths,
    losses: "CaptionLosses",
) -> None:
    """Score predictions; write scores.json and what else was asked for, and show a table."""
    from swjax.evaluation import later_predictions, score_predictions, wall_times
    from swjax.evaluation.benchmarks import find_benchmark
    from swjax.evaluation.predictions import RESULTS, write_authors_results
    from swjax.evaluation.scores import to_row
    from swjax.evaluation.spoken import SPEAKERS, answer_scores
    from swjax.evaluation.timing import score_constants, timing_scores

    args, folder = task.args, task.folder
    own = _own_metrics(args.metric)
    scores = {
        **losses.scores,
        **score_predictions(predictions, truths=truths, own=own),
    }
    if args.judge_url:
        scores["fluency"] = judge_fluency(args, folder, predictions)
    answers = task.answers(predictions)
    episodes = [answer.episode for answer in answers]
    if episodes:
        scores |= timing_scores(episodes) | answer_scores(answers)
    row = to_row(scores, videos=len(predictions))
    if losses.videos != len(predictions):
        row["loss_videos"] = losses.videos
    rows = {"model": row | {"mode": str(task.mode), "wall": wall_times(predictions, mode=task.mode, rows=args.rows)}}
    if later := later_predictions(predictions):
        references = {
            name: {one.key: one.reference for one in later} for name in truths if find_benchmark(name).read is None
        }
        rows["later turns"] = to_row(score_predictions(later, truths=references, own=own), videos=len(later))
    kinds = sorted({question.kind for example in task.examples for question in example.questions})
    for kind in kinds if any(kinds) else ():
        of_kind = [answer for answer in answers if answer.kind == kind]
        found = timing_scores([answer.episode for answer in of_kind]) | answer_scores(of_kind)
        rows[f"questions: {kind}" if kind else "questions"] = to_row(found, videos=len(of_kind))
    blind = score_constants(episodes, periods=(2,)) if episodes else {}
    rows |= {SPEAKERS[name]: to_row(found, videos=len(episodes)) for name, found in blind.items() if name in SPEAKERS}
    if args.baselines:
        rows |= score_baselines(task, truths, [prediction.key for prediction in predictions])
    write_json(folder / "scores.json", rows)
    if args.results_format == "authors":
        write_authors_results(folder / RESULTS, predictions, task=args.task)
    schedule = "" if task.seed is None else f", random schedule of seed {task.seed}"
    out.print(f"{args.checkpoint} on {len(predictions)} videos of {args.data}{schedule}", soft_wrap=True)
    show_scores(out, rows)


def _own_metrics(named: Sequence[str]) -> dict[str, str]:
    metrics = {}
    for word in named:
        name, equals, place = word.partition("=")
        if not (name.isidentifier() and equals and ":" in place):
            raise UsageError(f"--metric {word} is not of the form NAME=FILE.py:FUNCTION")
        metrics[name] = place
    return metrics


def _explain_losses(out: Console, losses: "CaptionLosses", known: set[str], watched: int) -> None:
    """Say of how many videos the loss is, and why it is not of those that could be watched."""
    others = [video for video in losses.rejected if video.where not in known]
    if others or losses.videos != watched:
        out.print(f"loss and perplexity are of {losses.videos} videos, and {watched} were watched:", soft_wrap=True)
    for video in others[:10]:
        out.print(f"  {video.where}: {video.reason}", markup=False, soft_wrap=True)


def _list_rejected(out: Console, skipped: "Sequence[Rejected]") -> None:
    if skipped:
        out.print(f"{len(skipped)} examples could not be used:")
        for example in skipped[:10]:
            out.print(f"  {example.where}: {example.reason}", markup=False, soft_wrap=True)
