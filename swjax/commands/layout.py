"""`swjax layout`: show what a position design makes of a chat."""

import argparse
from typing import TYPE_CHECKING

from swjax.commands.say import UsageError, any_path, console, refusing
from swjax.streaming.spec import StreamSpec

if TYPE_CHECKING:  # at run time they are imported where they are used, so that --help is quick
    import numpy as np
    from rich.console import Console

    from swjax.commands.layout_chat import Chat
    from swjax.streaming import StreamLayout, Variant

NAME = "layout"
HELP = "show the position ids and the mask of the position designs"

DESCRIPTION = """\
Show what a position design makes of a chat: its tokens in the order of time, their temporal, height and width ids,
what each sees and what it is trained to predict. Several designs are shown beside one another. --figure draws ids and
masks.

The chat is a short example, unless you give one: --text an answer of yours; --manifest an example of a data set with
all of its turns, its video decoded and sized as in training, and, unless you give --schedule or --random, its words
after the frames that the times of its `sentences` allow; or --tokens a JSON file of any chat of Qwen2.5-VL, several
turns, videos and images included:

  {"input_ids": [151644, 8948, ...], "video_grid_thw": [[4, 2, 4]], "image_grid_thw": []}

designs:
  offline       one count; the answer after the video
  offline_gdpe  the answer counted apart, from 0; after the video
  interleave    one count in order of arrival; a frame sees the words before it
  ospe          words and the next frame start at the same id
  gdpe          the answer counted apart, from 0
  gipe          the answer counted apart, from --gap
  all           all six
"""
EXAMPLE = """\
examples:
  swjax layout --variant gdpe
  swjax layout --variant all --figure designs.png --figure designs.svg
  swjax layout --variant ospe --frames 5 --schedule 2,0,3,1,1 --answer 9
  swjax layout --variant gdpe --ask 1 --ask 2 --wait-k 2 --answer 3
  swjax layout --variant gipe --gap 64 --text "The video shows a cat. It sleeps."
  swjax layout --manifest data/moving_shapes/test/manifest.jsonl --max-pixels 3136
"""
LONGEST_IN_FULL = 64
"""Tokens up to which each has a line of its own."""
MAX_PIXELS = StreamSpec.max_pixels
MEANT_FOR = {
    "frames": ("example", "text"),
    "grid": ("example", "text"),
    "answer": ("example",),
    "ask": ("example",),
    "question": ("text", "manifest"),
    "key": ("manifest",),
    "max_pixels": ("manifest",),
    "tokenizer": ("text", "manifest", "tokens"),
}
"""Arguments that only some sources of a chat use."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument(
        "--variant", action="append", metavar="NAME", help="design to show, or all; may be repeated (default: gdpe)"
    )
    parser.add_argument(
        "--figure",
        action="append",
        type=any_path,
        default=[],
        metavar="FILE",
        help="PNG or SVG to draw; may be repeated",
    )
    parser.add_argument(
        "--gap", type=int, default=StreamSpec.gap, help="first id of the answer in gipe (default: %(default)s)"
    )
    parser.add_argument(
        "--fps",
        type=float,
        default=StreamSpec.fps,
        help="video frames a second; two are one frame (default: %(default)g)",
    )
    parser.add_argument(
        "--lines", type=int, default=80, metavar="N", help="lines of a table; the middle is left out (default: 80)"
    )
    parser.add_argument("--every-token", action="store_true", help="a line for each token, whatever their number")
    schedule = parser.add_argument_group("when the words are spoken").add_mutually_exclusive_group()
    schedule.add_argument(
        "--wait-k",
        type=int,
        default=StreamSpec.wait_k,
        metavar="K",
        help="K words after each frame (default: %(default)s)",
    )
    schedule.add_argument("--schedule", metavar="N,N,...", help="words after each frame, one by one")
    schedule.add_argument("--random", metavar="LOW:HIGH", help="words after each frame drawn from LOW to HIGH")
    parser.add_argument("--seed", type=int, default=0, help="seed of --random (default: 0)")
    chat = parser.add_argument_group("the chat")
    chat.add_argument("--frames", type=int, help="frames of the example's video (default: 4)")
    chat.add_argument("--grid", metavar="ROWSxCOLUMNS", help="tokens of a frame, rows x columns (default: 1x2)")
    chat.add_argument("--answer", type=int, metavar="N", help="words of the example's answer (default: one to spare)")
    chat.add_argument(
        "--ask",
        type=int,
        action="append",
        metavar="FRAME",
        help="a question that arrives after this frame of the example, 0 for the first; may be repeated",
    )
    source = chat.add_mutually_exclusive_group()
    source.add_argument("--text", help="an answer, cut into a tokenizer's tokens")
    source.add_argument("--manifest", type=any_path, metavar="FILE", help="a data set to take an example from")
    source.add_argument("--tokens", type=any_path, metavar="FILE", help="JSON file of a chat")
    chat.add_argument("--key", help="video_id of the example, with --manifest (default: the first)")
    chat.add_argument("--question", help="what is asked about the video, with --text or --manifest")
    chat.add_argument(
        "--max-pixels", type=int, help="largest area of a frame, 784 or more, with --manifest (default: 200704)"
    )
    chat.add_argument("--tokenizer", metavar="DIR", help="tokenizer of the chat (default: the small one of swjax)")


@refusing
def run(args: argparse.Namespace) -> int:
    """Print tables, and draw the figure."""
    from swjax.commands.layout_asked import AskedChat
    from swjax.commands.layout_figure import check_endings, draw_layouts, save_figure
    from swjax.streaming import Variant

    if args.lines < 2:
        raise UsageError(f"--lines must be at least 2, got {args.lines}")
    check_endings(args.figure)
    names = args.variant or ["gdpe"]
    try:
        variants = list(Variant) if "all" in names else list(dict.fromkeys(map(Variant, names)))
        chat, counts = _chat_and_schedule(args)
        if isinstance(chat, AskedChat):
            layouts = {variant: chat.lay_out(variant, gap=args.gap, fps=args.fps) for variant in variants}
        else:
            layouts = {variant: _lay_out(chat, variant, counts, args) for variant in variants}
    except ValueError as error:
        raise UsageError(str(error)) from error
    out = console()
    if args.figure:
        save_figure(draw_layouts(layouts, chat.special), args.figure)
    _print_tables(out, layouts, chat, args)
    for file in args.figure:
        out.print(f"drawn: {file}", soft_wrap=True)
    return 0


def _print_tables(
    out: "Console", layouts: "dict[Variant, StreamLayout]", chat: "Chat", args: argparse.Namespace
) -> None:
    from swjax.commands.layout_table import choose_runs, design_table, ids_table, seen_table, token_lines
    from swjax.streaming import DESIGNS

    # The order of the rows is the time of a design that speaks while watching, if there is one.
    first = max(layouts, key=lambda variant: DESIGNS[variant].speaks_while_watching)
    tokens = len(chat.input_ids)
    runs = choose_runs(
        layouts[first],
        first,
        chat.special,
        collapse=tokens > LONGEST_IN_FULL and not args.every_token,
        most=None if args.every_token else max(args.lines, LONGEST_IN_FULL if tokens <= LONGEST_IN_FULL else 0),
    )
    lines = {
        variant: token_lines(layout, variant, chat.special, runs, chat.text_of) for variant, layout in layouts.items()
    }
    if len(lines) == 1:
        out.print(design_table(lines[first], str(first)))
        return
    out.print(ids_table(lines))
    out.print()
    out.print(seen_table(lines))


def _lay_out(chat: "Chat", variant: "Variant", counts: "np.ndarray", args: argparse.Namespace) -> "StreamLayout":
    from swjax.streaming import DEFAULT_GEOMETRY, build_layout

    return build_layout(
        chat.input_ids,
        chat.video_grid_thw,
        image_grid_thw=chat.image_grid_thw,
        variant=variant,
        schedule=counts.tolist(),
        gap=args.gap,
        second_per_grid_t=DEFAULT_GEOMETRY.frame_seconds(args.fps),
        special_tokens=chat.special,
    )


def _chat_and_schedule(args: argparse.Namespace) -> "tuple[Chat, np.ndarray]":
    import numpy as np

    from swjax.commands.layout_asked import asked_chat
    from swjax.commands.layout_chat import example_chat, manifest_chat, read_chat, text_chat

    source = next((name for name in ("text", "manifest", "tokens") if getattr(args, name) is not None), "example")
    for name, sources in MEANT_FOR.items():
        if getattr(args, name) is not None and source not in sources:
            given = "the example" if source == "example" else f"--{source}"
            raise UsageError(f"--{name.replace('_', '-')} means nothing for {given}; see swjax layout --help")
    if not args.fps > 0:
        raise UsageError(f"--fps must be above 0, got {args.fps}")
    if args.tokens is not None:
        chat = read_chat(args.tokens, args.tokenizer)
    elif args.manifest is not None:
        most = MAX_PIXELS if args.max_pixels is None else args.max_pixels
        pixels = (min(StreamSpec.min_pixels, most), most)
        chat, by_sentences = manifest_chat(
            args.manifest, args.key, args.question, args.tokenizer, fps=args.fps, pixels=pixels, wait_k=args.wait_k
        )
        if by_sentences is not None and args.schedule is None and args.random is None:
            return chat, np.array(by_sentences)
    elif args.text is not None:
        chat = text_chat(_grid(args), args.question or "What happens?", args.text, args.tokenizer)
    else:
        grid, asked = _grid(args), sorted(args.ask or ())
        if asked and not 0 <= asked[0] <= asked[-1] < grid[0]:
            raise UsageError(f"--ask takes a frame from 0 to {grid[0] - 1}, got {asked[0]} to {asked[-1]}")
        counts = _schedule(args, grid[0] + len(asked))
        words = (int(counts.sum()) + 1) // (1 + len(asked)) if args.answer is None else args.answer
        if words < 0:
            raise UsageError(f"--answer must be at least 0 words, got {words}")
        if asked:
            return asked_chat(grid, words, asked, counts), counts
        return example_chat(grid, words), counts
    return chat, _schedule(args, chat.num_frames)


def _grid(args: argparse.Namespace) -> tuple[int, int, int]:
    """Frames, rows and columns, in tokens."""
    frames, grid = 4 if args.frames is None else args.frames, args.grid or "1x2"
    try:
        rows, columns = (int(size) for size in grid.lower().split("x"))
    except ValueError:
        raise UsageError(f"--grid is {grid!r}; give rows and columns such as 2x3") from None
    if min(frames, rows, columns) < 1:
        raise UsageError(f"--frames {frames} and --grid {grid} must be at least 1")
    return frames, rows, columns


def _schedule(args: argparse.Namespace, frames: int) -> "np.ndarray":
    from swjax.streaming import random_schedule, tokens_per_frame_schedule

    if args.random is not None:
        try:
            low, high = (int(bound) for bound in args.random.split(":"))
        except ValueError:
            raise UsageError(f"--random is {args.random!r}; give bounds such as 1:5") from None
        return random_schedule(frames, low=low, high=high, seed=args.seed)
    if args.schedule is not None:
        try:
            counts = [int(count) for count in args.schedule.split(",")]
        except ValueError:
            raise UsageError(f"--schedule is {args.schedule!r}; give counts such as 3,0,2") from None
        return tokens_per_frame_schedule(counts, frames)
    return tokens_per_frame_schedule(args.wait_k, frames)
