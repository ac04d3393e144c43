"""`swjax data inspect`: look at a data set before training on it."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import track
from rich.table import Table

from swjax.commands.say import SMALL_TOKENIZER, UsageError, any_path, console, refusing
from swjax.storage import as_path, local_file, writing_folder
from swjax.streaming.spec import StreamSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from swjax.data.example import Rejected, VideoExample
    from swjax.data.pipeline_config import PipelineConfig
    from swjax.data.statistics import Statistics
    from swjax.streaming.tokens import Tokenizer

NAME = "data"
HELP = "look at a data set: counts, lengths, padding, and examples with what may be said when"

DESCRIPTION = """\
Look at a data set before training on it: encodes examples as training does, and shows

  - its format, and what becomes of each field;
  - how many can be used, and why the others cannot;
  - seconds, frames, tokens and answer tokens a second: least, median, 95th percentile, most;
  - how much of a batch is padding, one example a row and packed, and the keys of a configuration that fit;
  - with --output, histograms (histograms.png) and contact sheets of the first examples, with what may be said after
    each frame below it (needs the extra `plots`), and all figures (statistics.json).
"""
EXAMPLE = """\
examples:
  swjax data inspect data/moving_shapes/train/manifest.jsonl --output inspected
  swjax data inspect data/pe_video:train --tokenizer /models/Qwen2.5-VL-3B-Instruct --max-tokens 8192 --limit 500
"""

COLUMNS = {
    "seconds": "seconds of video",
    "frames": "frames of the model",
    "tokens": "tokens",
    "visual_tokens": "tokens of frames",
    "labels": "tokens that are learned",
    "answer_rate": "learned tokens a second",
    "patches": "patches",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("action", choices=["inspect"], help="what to do")
    parser.add_argument("source", help="a data set in any format, or prepared records and their split (FOLDER:train)")
    parser.add_argument("--format", default="auto", help="its format (docs/data.md); by default it is found by looking")
    parser.add_argument("--output", type=any_path, help="folder for statistics.json, the histograms and contact sheets")
    parser.add_argument("--limit", type=int, default=1000, help="look at the first so many examples (default: 1000)")
    parser.add_argument("--sheets", type=int, default=4, help="contact sheets to draw (default: 4)")
    parser.add_argument("--tokenizer", help="folder of the tokenizer (default: the small one of Moving Shapes)")
    parser.add_argument("--root", type=any_path, help="folder that a manifest's videos must lie in (default: its own)")
    parser.add_argument(
        "--fps", type=float, default=StreamSpec.fps, help="frames taken a second (default: %(default)g)"
    )
    parser.add_argument(
        "--min-pixels",
        type=int,
        default=StreamSpec.min_pixels,
        help="smallest area of a frame, at most --max-pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=StreamSpec.max_pixels,
        help="largest area of a frame, 784 or more (default: %(default)s)",
    )
    parser.add_argument(
        "--max-tokens", type=int, default=8192, help="tokens of a row; longer examples are skipped (default: 8192)"
    )
    parser.add_argument(
        "--max-patches",
        type=int,
        default=30 * 1024,
        help="patches of a row, a multiple of 4; longer videos are skipped (default: 30720)",
    )
    parser.add_argument(
        "--drop",
        default=StreamSpec.drop,
        help="tokens of frames that are dropped, such as dtd_pixels:tau=0.1 (docs/memory.md; default: %(default)s)",
    )
    parser.add_argument(
        "--wait-k", type=int, default=StreamSpec.wait_k, help="answer tokens after each frame (default: %(default)s)"
    )


@refusing
def run(args: argparse.Namespace) -> int:
    """Measure, print, and write what was asked for."""
    from swjax.data.pipeline_config import PipelineConfig
    from swjax.data.sources import is_records, open_source, readable_examples
    from swjax.data.statistics import measure
    from swjax.data.suggest import describe_filling, fitting_keys
    from swjax.data.tokenizer import load_tokenizer

    out = console()
    tokenizer = load_tokenizer(args.tokenizer)
    try:
        config = PipelineConfig(
            batch_size=1,
            max_tokens=args.max_tokens,
            max_patches=args.max_patches,
            max_videos=64,
            wait_k=args.wait_k,
            fps=args.fps,
            min_pixels=args.min_pixels,
            max_pixels=args.max_pixels,
            drop=args.drop,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not is_records(args.source):
        _print_format(args, out)
    source = open_source(args.source, root=args.root, format=args.format)
    count = min(args.limit, len(source.examples))
    damaged: list[Rejected] = []
    examples = _usable(itertools.islice(readable_examples(source.examples), count), damaged)
    found = measure(track(examples, "encoding", total=count, console=out, transient=True), config, tokenizer)
    rejected = (*source.rejected, *damaged, *found.rejected)
    if args.tokenizer is None:
        out.print(SMALL_TOKENIZER, soft_wrap=True)
    out.print(
        f"{args.source}: {len(source.examples)} examples, the first {count} looked at, {len(found.sizes)} usable",
        soft_wrap=True,
    )
    for bad in rejected[:5]:
        out.print(f"  skipped: {bad.where}: {bad.reason}", markup=False, soft_wrap=True)
    if len(rejected) > 5:
        out.print(f"  ... and {len(rejected) - 5} more")
    if not found.sizes:
        raise UsageError(f"no example of {args.source} can be used")
    _print_table(found, out)
    if args.drop != StreamSpec.drop:
        seen, dropped = (int(found.column(name).sum()) for name in ("visual_tokens", "dropped"))
        saved = f"{dropped:,} of {seen + dropped:,} tokens of frames ({dropped / (seen + dropped):.1%})"
        out.print(f"dropped by {args.drop}: {saved}", markup=False, soft_wrap=True)
    packed = "" if found.packed_share is None else f", {found.packed_share:.1%} packed"
    out.print(f"padding in rows of {args.max_tokens} tokens: {found.padded_share:.1%} with one example a row{packed}")
    out.print("what fits them, for `swjax train`:")
    out.print("  " + " ".join(f"--{key}" for key in fitting_keys(found, config)), markup=False, soft_wrap=True)
    for line in describe_filling(found, config, examples=len(source.examples)):
        out.print(f"  or {line}", markup=False, soft_wrap=True)
    if args.output is not None:
        with writing_folder(args.output) as folder:
            _write(folder, args, found, rejected, source.examples, config, tokenizer)
        out.print(f"written: {args.output}", soft_wrap=True)
    return 0


def _print_format(args: argparse.Namespace, out: Any) -> None:
    """The format of a data set, and what becomes of each of its fields."""
    from swjax.data.formats import choose_format, count_fields

    path = as_path(args.source)
    found = choose_format(path, args.format)
    if not path.exists():
        return
    out.print(f"{args.source}: format {found.name} ({found.meaning})", markup=False, soft_wrap=True)
    table = Table("field", "records", "what becomes of it", box=None)
    for name, number, meaning in count_fields(local_file(path), found, limit=args.limit):
        table.add_row(name, str(number), meaning)
    out.print(table)


def _usable(examples: Iterable[VideoExample | Rejected], damaged: list[Rejected]) -> Iterator[VideoExample]:
    """Those that can be read; the others go into `damaged`."""
    from swjax.data.example import Rejected

    for example in examples:
        if isinstance(example, Rejected):
            damaged.append(example)
        else:
            yield example


def _print_table(found: Statistics, out: Any) -> None:
    import numpy as np

    table = Table("", "least", "median", "95 %", "most", "sum", box=None)
    for name, meaning in COLUMNS.items():
        values = found.column(name)
        shown = [*np.quantile(values, [0, 0.5, 0.95, 1]), values.sum()]
        cells = [f"{value:,.1f}".removesuffix(".0") for value in shown]
        table.add_row(meaning, *(cells[:-1] if name == "answer_rate" else cells))
    out.print(table)


def _write(
    folder: Path,
    args: argparse.Namespace,
    found: Statistics,
    rejected: Any,
    examples: Any,
    config: PipelineConfig,
    tokenizer: Tokenizer,
) -> None:
    from swjax.commands.data_figures import draw_histograms, draw_sheet
    from swjax.data.sources import readable_examples

    folder.mkdir(parents=True, exist_ok=True)
    summary = {
        "source": str(args.source),
        "examples": len(examples),
        "usable": len(found.sizes),
        "padded_share": found.padded_share,
        "packed_share": found.packed_share,
        "rejected": [{"where": bad.where, "reason": bad.reason} for bad in rejected],
        "sizes": [{"key": size.key} | {name: getattr(size, name) for name in COLUMNS} for size in found.sizes],
    }
    (folder / "statistics.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    draw_histograms(found, COLUMNS, folder / "histograms.png")
    usable = {size.key for size in found.sizes}
    # A sheet has what may be said after each frame of one video.
    shown = (one for one in _usable(readable_examples(examples), []) if one.key in usable and one.video is not None)
    for number, example in enumerate(itertools.islice(shown, args.sheets)):
        draw_sheet(example, config, tokenizer, folder / f"example_{number}.png")
