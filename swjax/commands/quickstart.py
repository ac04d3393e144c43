"""`swjax quickstart`: the whole way from nothing to an exported model that speaks while it watches."""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path

from swjax.commands.say import console

NAME = "quickstart"
HELP = "make data, train, evaluate, stream and export a small model, in minutes"

DESCRIPTION = """\
The whole way on one small machine, without downloads: make the Moving Shapes data set, train a small
Qwen2.5-VL-shaped model on it from scratch (GDPE, wait-3), measure it on held-out videos beside two baselines, let it
describe one of them while it watches, and export it for transformers. Each step is one command, which is printed
first. Started again, it resumes where it stopped. Everything is written below the current folder.
"""
EXAMPLE = """\
examples:
  swjax quickstart
  swjax quickstart --train 500 --config.steps=100  # every step, without learning much
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("--config", default="quickstart", help="training configuration (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path("data/moving_shapes"), help="(default: %(default)s)")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/moving_shapes"), help="(default: %(default)s)")
    parser.add_argument("--export", type=Path, default=Path("exports/moving_shapes"), help="(default: %(default)s)")
    parser.add_argument("--train", type=int, default=4000, help="training videos (default: %(default)s)")
    parser.add_argument("--validation", type=int, default=100, help="videos for the loss in training (default: 100)")
    parser.add_argument("--held-out", type=int, default=100, help="test videos to measure on (default: %(default)s)")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Run the five verbs one after another; what is left over of the command line goes to `train`."""
    from swjax.commands.main import main  # here, because main imports this module

    out = console()
    seconds: dict[str, float] = {}
    test = args.data / "test"
    video = test / "videos" / "test-00000.mp4"
    data = [
        f"--config.data.{split}={args.data / manifest}"
        for split, manifest in (("train", "train/manifest.jsonl"), ("validation", "validation/manifest.jsonl"))
    ]
    counts = ["--train", args.train, "--validation", args.validation, "--test", args.held_out]
    steps = (
        ("make the data set", ["prepare", "moving_shapes", "--output", args.data, *counts]),
        (
            "train",
            ["train", "--config", args.config, "--run-dir", args.run_dir, "--config.variant=gdpe", *data, *extra],
        ),
        (
            "evaluate on held-out videos",
            ["evaluate", "--checkpoint", args.run_dir, "--data", test / "manifest.jsonl", "--baselines"],
        ),
        ("stream a held-out video", ["stream", "--checkpoint", args.run_dir, "--video", video]),
        ("export", ["export", "--checkpoint", args.run_dir, "--output", args.export]),
    )
    for number, (title, words) in enumerate(steps, start=1):
        command = [str(word) for word in words]
        out.rule(f"[bold]{number} of {len(steps)}: {title}", align="left")
        out.print(f"$ swjax {' '.join(command)}", style="dim", soft_wrap=True, markup=False)
        began = time.monotonic()
        status = main(command)
        if status:
            return status
        seconds[command[0]] = time.monotonic() - began
    _sum_up(args, video, seconds)
    return 0


def _sum_up(args: argparse.Namespace, video: Path, seconds: Mapping[str, float]) -> None:
    from swjax.data.manifest import read_manifest

    scores = json.loads((args.run_dir / "evaluation" / "scores.json").read_text())
    caption = read_manifest(video.parents[1] / "manifest.jsonl").examples[0].caption
    model, constant, blank = (scores[name] for name in ("model", "best constant answer", "model, blank frames"))
    test, out = video.parent, console()
    out.rule("[bold]done", align="left")
    out.print(
        f"""\
In {sum(seconds.values()) / 60:.1f} minutes a model learned, from nothing, to describe videos while it watches them
({", ".join(f"{name} {part:.0f} s" for name, part in seconds.items())}).
Events told exactly, in {model["videos"]} videos that it had not seen:
  {model["event_accuracy"]:4.0%}  the model ({model["grammatical"]:.0%} of its captions are grammatical)
  {constant["event_accuracy"]:4.0%}  the best constant answer
  {blank["event_accuracy"]:4.0%}  the same model shown blank frames

The caption of the streamed video, for comparison:
  {caption}

  {str(args.data) + "/":<26}the videos, their captions and events
  {str(args.run_dir) + "/":<26}checkpoints, metrics.jsonl, TensorBoard files, evaluation/
  {str(args.export) + "/":<26}the model as transformers loads it

See it live: the page plays a film, such as those in {test}, with the words under it as they are said
  swjax serve --checkpoint {args.run_dir}

Next:
  swjax stream --checkpoint {args.run_dir} --video {video.with_name("test-00001.mp4")}
  swjax train --config {args.config} --config.variant=gipe --config.run_dir=runs/gipe
  swjax train --help""",
        markup=False,
        soft_wrap=True,
    )
