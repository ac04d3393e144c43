"""`swjax prepare`: make a data set on disk."""

from __future__ import annotations

import argparse
from pathlib import Path

from swjax.commands.say import console, refusing

NAME = "prepare"
HELP = "make a data set on disk, ready for training"

DESCRIPTION = """\
Make a data set on disk: videos, and beside them a manifest with one JSON object a line, in the fields of PE-Video
(video_id, video_path, video_duration_in_s, human_caption).

moving_shapes  synthetic videos of 5 to 12 s in which a coloured shape enters, turns, bounces off another, changes
               colour and leaves. Nothing is downloaded. The captions come from a small grammar, and events.jsonl
               beside the manifest says what happens when, so that what a model says can be checked exactly.

The same seed makes the same data set, whatever the number of workers. If it is interrupted, start it again: videos
that are whole are kept.
"""
EXAMPLE = "example: swjax prepare moving_shapes --output data/moving_shapes --train 3000 --validation 100 --test 100"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("data_set", choices=["moving_shapes"], help="which data set to make")
    parser.add_argument("--output", type=Path, help="folder to make it in (default: data/DATA_SET)")
    for split, number in (("train", 3000), ("validation", 100), ("test", 100)):
        parser.add_argument(f"--{split}", type=int, default=number, help=f"videos in that split (default: {number})")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other videos (default: 0)")
    parser.add_argument("--workers", type=int, help="processes that render (default: one a core)")


@refusing
def run(args: argparse.Namespace) -> int:
    """Make the data set and say what was made, and where."""
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
