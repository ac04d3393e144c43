"""`swjax prepare`: make a data set on disk."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.table import Table

from swjax.commands.say import SMALL_TOKENIZER, UsageError, any_path, console, refusing
from swjax.plain import Json
from swjax.storage import is_remote
from swjax.streaming.spec import StreamSpec

NAME = "prepare"
HELP = "make a data set, ready for training"

DESCRIPTION = """\
Make a data set, on disk or in a bucket.

moving_shapes  synthetic videos of 5 to 12 s in which a coloured shape enters, turns, bounces off another, changes
               colour and leaves. Nothing is downloaded. The captions come from a small grammar, and events.jsonl
               beside the manifest says what happens when, so that what a model says can be checked exactly.
moving_shapes_live  long films of several such shapes at a time, and questions that are asked while they run: what has
               happened, what is there now, tell me when; some films never show what is asked for.
pe_video       records of PE-Video: --source is the folder with train/*.tar and test/*.tar.
funqa          records of FunQA, tasks H2 H3 C2 C3 M2 M3: --source is the folder with FunQA_train.json and train.zip or
               train/, likewise val and test.
manifest       records of your own videos: --source is a manifest or a file or folder in any other format of
               docs/data.md (LLaMA-Factory, ms-swift, LiveCC, ActivityNet, subtitles, Hugging Face datasets), or a
               folder with train/manifest.jsonl.

Without --source, moving_shapes renders videos and writes manifests; with --source, it makes records of them.

Records hold each clip at the training frame rate and resolution in ArrayRecord files, which train many times faster
than the videos themselves. Train on them with --config.data.train=OUTPUT/NAME:train; --max-pixels must be at least
config.data.max_pixels, and --fps a multiple of config.data.fps, so that training sees what streaming will see. Records
that are there of the same source by the same recipe are not made again; those of another are kept, and an error says
so. Examples that cannot be used are skipped and listed, with the reason, in rejected.jsonl; if their share is above
--max-rejected, nothing is made.

The same seed makes the same Moving Shapes, whatever the number of workers. If rendering is interrupted, start it
again: videos that are whole are kept.
"""
EXAMPLE = """\
examples:
  swjax prepare moving_shapes --output data/moving_shapes --train 3000 --validation 100 --test 100
  swjax prepare pe_video --source /data/PE-Video --tokenizer /models/Qwen2.5-VL-3B-Instruct --output data
  swjax prepare manifest --source my_videos/manifest.jsonl --output data --fps 2 --max-pixels 200704
  swjax prepare manifest --source gs://BUCKET/clips/manifest.jsonl --output gs://BUCKET/data --min-pixels 784
  swjax prepare pe_video --source /shared/PE-Video --output /shared/data --beam-runner FlinkRunner --beam-option=...
"""

_PAPER = "the paper's {} for pe_video and funqa, {} for the others"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument(
        "data_set",
        choices=["moving_shapes", "moving_shapes_live", "pe_video", "funqa", "manifest"],
        help="what to make",
    )
    parser.add_argument("--output", type=any_path, help="folder to make it in (default: data, or data/moving_shapes)")
    parser.add_argument(
        "--workers", type=int, help="processes that work (default: one a core); 0 works in this one (records only)"
    )
    shapes = parser.add_argument_group("rendering Moving Shapes")
    for split, number in (("train", 3000), ("validation", 100), ("test", 100)):
        shapes.add_argument(f"--{split}", type=int, default=number, help=f"videos in that split (default: {number})")
    shapes.add_argument("--seconds", type=int, default=60, help="length of a film (default: 60; moving_shapes_live)")
    shapes.add_argument("--seed", type=int, default=0, help="another seed makes other videos (default: 0)")
    records = parser.add_argument_group("making records")
    records.add_argument("--source", type=any_path, help="folder or manifest of the original videos")
    records.add_argument(
        "--format", default="auto", metavar="NAME", help="format of the source of manifest (default: auto, which looks)"
    )
    records.add_argument(
        "--name", default="", help="what to call the records, and their folder in --output (default: as DATA_SET)"
    )
    records.add_argument(
        "--overwrite", action="store_true", help="make records anew in the place of others of that name"
    )
    records.add_argument("--download", action="store_true", help="fetch the release into --source first (from the Hub)")
    records.add_argument(
        "--fps", type=float, default=StreamSpec.fps, help="frames kept a second (default: %(default)g)"
    )
    records.add_argument(
        "--min-pixels",
        type=int,
        default=StreamSpec.min_pixels,
        help="smallest area of a frame, at most --max-pixels (default: %(default)s)",
    )
    records.add_argument(
        "--max-pixels",
        type=int,
        default=StreamSpec.max_pixels,
        help="largest area of a frame, 784 or more (default: %(default)s)",
    )
    for name, what, limit in (
        ("min-seconds", "shortest video", ("5", "none")),
        ("max-seconds", "longest video", ("30", "that of 768 frames")),
        ("min-rate", "fewest answer tokens to a second", ("3", "none")),
        ("max-rate", "most answer tokens to a second", ("6", "none")),
    ):
        records.add_argument(f"--{name}", type=float, help=f"{what} (default: {_PAPER.format(*limit)})")
    records.add_argument("--prefix", default="", help="take only answers that begin so, such as 'The video shows'")
    records.add_argument("--tokenizer", default="", help="folder of the tokenizer that counts (default: a small one)")
    records.add_argument("--max-rejected", type=float, default=0.05, help="share that may be bad (default: 0.05)")
    records.add_argument("--beam-runner", help="work in an Apache Beam pipeline: DirectRunner, FlinkRunner, ...")
    records.add_argument(
        "--beam-option", action="append", default=[], help="an option of the pipeline, such as --beam-option=--region=x"
    )


@refusing
def run(args: argparse.Namespace) -> int:
    """Make the data set and say what was made, and where."""
    if args.data_set == "moving_shapes" and args.source is None:
        return _render(args)
    if args.data_set == "moving_shapes_live":
        return _render_films(args)
    return _make_records(args)


def _render(args: argparse.Namespace) -> int:
    from swjax.data.moving_shapes.prepare import prepare  # here, so that --help is quick

    out = console()
    made = prepare(
        args.output or Path("data") / args.data_set,
        train=args.train,
        validation=args.validation,
        test=args.test,
        seed=args.seed,
        workers=args.workers,
        console=out,
    )
    for split in made.splits:
        out.print(
            f"{split.name:>10}: {split.num_videos} videos of {split.duration_s / split.num_videos:.1f} s on average, "
            f"{split.num_tokens / split.duration_s:.1f} tokens a second, {split.num_reused} of them made before: "
            f"{split.manifest}",
            soft_wrap=True,
        )
    return 0


def _render_films(args: argparse.Namespace) -> int:
    from swjax.data.moving_shapes.prepare_live import prepare_films

    if args.source is not None:
        raise UsageError("films are made, not read: leave --source out; `prepare manifest` makes records of them")
    out, counts = console(), {"train": args.train, "validation": args.validation, "test": args.test}
    how = {"seconds": args.seconds, "seed": args.seed, "workers": args.workers}
    made = prepare_films(args.output or Path("data") / args.data_set, **counts, **how, console=out)
    for split, manifest in made.items():
        out.print(f"{split:>10}: {counts[split]} films of {args.seconds} s: {manifest}", soft_wrap=True)
    return 0


def _make_records(args: argparse.Namespace) -> int:
    from swjax.data.builders.prepare import PAPER_LIMITS, download_release, prepare_records
    from swjax.data.builders.recipe import Recipe
    from swjax.data.moving_shapes.prepare import num_cores
    from swjax.data.tokenizer import load_tokenizer

    if args.source is None:
        raise UsageError(f"give the folder of the original {args.data_set} with --source")
    defaults = PAPER_LIMITS if args.data_set in ("pe_video", "funqa") else {}
    limits: Json = {
        name: defaults.get(name) if getattr(args, name) is None else getattr(args, name)
        for name in ("min_seconds", "max_seconds", "min_rate", "max_rate")
    }
    try:
        recipe = Recipe(
            fps=args.fps,
            min_pixels=args.min_pixels,
            max_pixels=args.max_pixels,
            prefix=args.prefix,
            tokenizer=args.tokenizer,
            **limits,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    out = console()
    if recipe.min_rate is not None or recipe.max_rate is not None:
        load_tokenizer(args.tokenizer or None)  # refuses before hours of work, not after
        if not args.tokenizer:
            out.print(SMALL_TOKENIZER, soft_wrap=True)
    if args.download and is_remote(args.source):
        raise UsageError(f"--download fetches to disk, and --source is {args.source}")
    if args.download:
        download_release(args.data_set, args.source)
    made = prepare_records(
        args.data_set,
        args.source,
        args.output or Path("data"),
        recipe,
        data_set=args.name,
        format=args.format,
        overwrite=args.overwrite,
        workers=num_cores() if args.workers is None else args.workers,
        max_rejected=args.max_rejected,
        beam_runner=args.beam_runner,
        beam_options=args.beam_option,
    )
    table = Table("split", "records", "rejected", "left out by the limits", box=None)
    for split, counts in made.report.items():
        left_out = ", ".join(f"{number} {limit}" for limit, number in counts["left_out"].items()) or "0"
        table.add_row(split, str(counts["records"]), str(counts["rejected"]), left_out)
    out.print(table)
    if any(counts["rejected"] for counts in made.report.values()):
        out.print(f"rejected, with reasons: {made.rejected}", soft_wrap=True)
    out.print(f"train on it with --config.data.train={made.folder}:train", soft_wrap=True)
    return 0
