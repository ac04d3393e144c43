"""How fast layouts are built on one core, beside the training step that they feed.

    python benchmarks/layouts.py
    python benchmarks/layouts.py --frame-tokens 64 256 --seconds 30 600 --repeats 50

Layouts: a chat of one video (a frame a second, wait-3) is laid out by each design, padded to the length of a row, and
packed with others of other lengths. Times are of one core's work (CPU time of the thread, which other work on the
machine does not lengthen), the median of the repeats; a layout a second is one that is built and padded.

The step: one of the quickstart's model and batch (32 rows, 4 tokens a frame) over 30 s videos, compiled, on this
machine's devices, by the clock; and what it takes of one core to lay out its batch. It is the hardest case for the
layouts: the smaller the model, the less time a step leaves them.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import track

from swjax.data.batching import make_row, pad_rows
from swjax.data.chat import EVALUATION_QUESTION, encode_chat
from swjax.data.tokenizer import load_tokenizer
from swjax.streaming import (
    DEFAULT_GEOMETRY,
    SpecialTokens,
    StreamLayout,
    Variant,
    build_layout,
    pack_layouts,
    pad_layout,
)
from swjax.training.config_file import load_config
from swjax.training.program import make_program
from swjax.training.start import choose_model, make_state
from swjax.training.step import put_batch

SPECIAL = SpecialTokens.qwen2_5_vl()
CONFIG = Path(__file__).parents[1] / "configs" / "moving_shapes.py"
WAIT_K, PROMPT_TOKENS, PACKED = 3, 30, 16
STEP_GRID = (30, 4, 4)


def make_chat(seconds: int, frame_tokens: int, spare_words: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and grid of a question about a video with a frame a second, and an answer of three words a frame."""
    question = [SPECIAL.im_start, *range(1000, 1000 + PROMPT_TOKENS), SPECIAL.newline, SPECIAL.vision_start]
    answer = np.arange(WAIT_K * seconds + spare_words) % 1000 + 2000
    video = np.full(seconds * frame_tokens, SPECIAL.video_pad)
    end = [SPECIAL.im_end, SPECIAL.newline]
    ids = np.concatenate([question, video, SPECIAL.trailer, SPECIAL.prefix, answer, end]).astype(np.int32)
    return ids, np.array([[seconds, 4, frame_tokens]])  # 2 x frame_tokens / 2 merged patches


def lay_out(chat: tuple[np.ndarray, np.ndarray], variant: Variant) -> StreamLayout:
    """The layout of a chat, without padding."""
    return build_layout(*chat, variant=variant, schedule=WAIT_K, special_tokens=SPECIAL)


def core_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median CPU time that one call takes of this thread."""
    work()
    times = []
    for _ in range(repeats):
        began = time.thread_time()
        work()
        times.append(time.thread_time() - began)
    return statistics.median(times)


def measure_layouts(seconds: int, frame_tokens: int, variant: Variant, repeats: int) -> str:
    """A line of the table."""
    chat = make_chat(seconds, frame_tokens)
    layout = lay_out(chat, variant)
    several = [lay_out(make_chat(seconds - seconds // 3 + i, frame_tokens), variant) for i in range(PACKED)]
    row = 2 * max(map(len, several))
    build = core_seconds(lambda: lay_out(chat, variant), repeats)
    pad = core_seconds(lambda: pad_layout(layout, len(layout) + 100), repeats)
    pack = core_seconds(lambda: pack_layouts(several, row), max(repeats // 5, 3)) / PACKED
    times = " | ".join(f"{1e3 * one:.3f}" for one in (build, pad, pack))
    return f"| {seconds} s | {frame_tokens} | {len(layout):,} | {variant} | {times} | {1 / (build + pad):,.0f} |"


def measure_step(repeats: int) -> tuple[int, int, float, float, float]:
    """A training step over 30 s videos.

    Returns:
        Rows of the batch, tokens of a row, and seconds of the step, of laying out its rows on one core, and of laying
        them out and copying them and their pixels into the batch.
    """
    tokenizer = load_tokenizer(None)
    special = SpecialTokens.from_tokenizer(tokenizer)
    answer = " ".join(["The video shows a green circle that moves to the left and becomes red."] * 7)
    ids = encode_chat(tokenizer, question=EVALUATION_QUESTION, answer=answer, video_grid_thw=STEP_GRID)
    grid, patches = np.array([STEP_GRID]), np.prod(STEP_GRID)
    sizes = {"max_tokens": len(ids), "max_labels": len(ids) // 2, "max_patches": patches}
    config = load_config(CONFIG, [f"--config.data.{name}={size}" for name, size in sizes.items()])
    program = make_program(config, model_config := choose_model(config.model, None, tokenizer))
    state = make_state(model_config, config, program.optimizer, program.shapes)
    pixels = np.random.default_rng(0).integers(0, 256, (patches, DEFAULT_GEOMETRY.patch_dim), np.uint8)

    def lay_out_row() -> StreamLayout:
        layout = build_layout(ids, grid, variant=config.variant, schedule=WAIT_K, special_tokens=special)
        return pad_layout(layout, len(ids))

    def make_batch() -> dict[str, np.ndarray]:
        rows = [make_row(lay_out_row(), pixels, grid) for _ in range(config.batch_size)]
        return pad_rows(rows, tokens=len(ids), patches=len(pixels), videos=1)

    steps = []
    for _ in range(repeats + 1):
        batch = put_batch(make_batch(), program.mesh, max_labels=config.data.max_labels, accumulation=1)
        began = time.perf_counter()
        state, metrics = program.train_step(state, batch)
        jax.block_until_ready((state, metrics))
        steps.append(time.perf_counter() - began)
    layouts = core_seconds(lambda: [lay_out_row() for _ in range(config.batch_size)], 10)
    return config.batch_size, len(ids), min(steps[1:]), layouts, core_seconds(make_batch, 10)


def main() -> None:
    """Measure, and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, nargs="+", default=[30, 600], help="lengths of the video (30 600)")
    parser.add_argument("--frame-tokens", type=int, nargs="+", default=[64, 256], help="tokens of a frame (64 256)")
    parser.add_argument("--repeats", type=int, default=30, help="calls to take the median of (30)")
    parser.add_argument("--steps", type=int, default=5, help="training steps to take the least time of (5); 0 for none")
    args = parser.parse_args()
    out = Console(highlight=False)
    cases = list(itertools.product(args.seconds, args.frame_tokens, Variant))
    lines = [measure_layouts(*case, args.repeats) for case in track(cases, "laying out", console=out, transient=True)]
    print("| video | tokens a frame | tokens | design | build, ms | pad, ms | pack, ms | layouts a second |")
    print("| ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    print("\n".join(lines))
    if args.steps:
        rows, tokens, step, layouts, batch = measure_step(args.steps)
        devices = f"{jax.device_count()} {jax.default_backend()} device(s)"
        print(f"\ntraining step: {rows} rows of {tokens} tokens, {devices}: {step:.3f} s")
        print(f"its layouts, one core: {1e3 * layouts:.1f} ms, {layouts / step:.2%} of the step")
        print(f"its arrays, pixels included, one core: {1e3 * batch:.1f} ms, {batch / step:.2%} of the step")


if __name__ == "__main__":
    main()
