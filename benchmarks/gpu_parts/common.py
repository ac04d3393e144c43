"""What the parts of the GPU benchmark share: sizes, the row that everything is measured on, timing and records.

No JAX and no PyTorch here: a part imports the one that it measures.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from swjax.streaming import KeySpans, SpecialTokens, StreamLayout, build_layout, pad_layout

FRAME_TOKENS = 64
FRAME_PATCHES = 256
PATCH_NUMBERS = 1176
WAIT_K = 3


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model, in the words of Qwen2.5-VL's config.json.

    Attributes:
        hidden_size, intermediate_size, layers, heads, key_heads, vocab_size, tied: of the decoder; heads have 128
            features.
        vision_depth, vision_hidden, vision_intermediate, vision_heads: of the vision tower.
        trains: `full`, or `lora` with rank 16 on all products of the decoder.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_heads: int
    vocab_size: int
    tied: bool
    vision_depth: int
    vision_hidden: int
    vision_intermediate: int
    vision_heads: int
    trains: str = "full"
    head_dim: int = 128


_TOWER = {"vision_depth": 32, "vision_hidden": 1280, "vision_intermediate": 3420, "vision_heads": 16}
MODELS = {
    "3b": ModelShape(2048, 11008, 36, 16, 2, 151_936, True, **_TOWER),
    "7b": ModelShape(3584, 18944, 28, 28, 4, 152_064, False, **_TOWER, trains="lora"),
    "7b_4_layers": ModelShape(3584, 18944, 4, 28, 4, 152_064, False, **_TOWER),
}
"""Name -> shape; what is trained with it fits into 78 GiB."""

_TINY_TOWER = {"vision_depth": 2, "vision_hidden": 32, "vision_intermediate": 64, "vision_heads": 2}
TINY_MODELS = {
    "3b": ModelShape(64, 128, 2, 4, 2, 1024, True, **_TINY_TOWER, head_dim=16),
    "7b": ModelShape(64, 128, 2, 4, 2, 1024, False, **_TINY_TOWER, trains="lora", head_dim=16),
    "7b_4_layers": ModelShape(64, 128, 2, 4, 2, 1024, False, **_TINY_TOWER, head_dim=16),
}
"""The same in miniature, for `--dry-run` on a CPU."""


@dataclass(frozen=True)
class AttentionSizes:
    """What attention is measured at: 7B's heads, bfloat16, one row.

    Attributes:
        lengths: slots of a row, the most telling first.
        heads, key_heads, head_dim: sizes.
        repeats: timed runs of each case.
    """

    lengths: tuple[int, ...] = (8192, 32768, 2048, 65536)
    heads: int = 28
    key_heads: int = 4
    head_dim: int = 128
    repeats: int = 10


TINY_ATTENTION = AttentionSizes(lengths=(256,), heads=4, key_heads=2, head_dim=32, repeats=2)
STEP_LENGTH, TINY_STEP_LENGTH = 8192, 320
STEP_REPEATS, TINY_STEP_REPEATS = 5, 1


def streaming_row(length: int) -> tuple[StreamLayout, Int32[np.ndarray, "videos 3"]]:
    """A GDPE row: a question, frames of 64 tokens, three words after each; and the grid of its video, in patches."""
    special = SpecialTokens.qwen2_5_vl()
    frames = (length - 24) // (FRAME_TOKENS + WAIT_K)
    before = [special.im_start, 7, special.newline, special.vision_start]
    video, answer = [special.video_pad] * (frames * FRAME_TOKENS), [9] * (WAIT_K * frames)
    ids = [*before, *video, *special.trailer, *special.prefix, *answer, special.im_end, special.newline]
    grid = np.array([[frames, 16, 16]])
    layout = build_layout(np.array(ids), grid, variant="gdpe", schedule=WAIT_K, special_tokens=special)
    return pad_layout(layout, length), grid.astype(np.int32)


def causal_spans(length: int) -> KeySpans:
    """int32[L] each."""
    return KeySpans(np.zeros(length, np.int32), np.arange(1, length + 1, dtype=np.int32))


def visible_pairs(spans: KeySpans) -> int:
    """Pairs of query and key of one head."""
    return int((np.asarray(spans.stop, np.int64) - np.asarray(spans.start, np.int64)).clip(0).sum())


def timed(
    run: Callable[[], Any], wait: Callable[[Any], Any], repeats: int, *, warm: int = 2, calls: int = 1
) -> dict[str, float]:
    """Median seconds of a call and the share of it that lies between the quartiles.

    Args:
        run: starts the work and returns what `wait` waits for.
        wait: returns when the work is done.
        repeats: times that are taken, after `warm` calls that are not.
        calls: of one time: started one after another and waited for together, as the start of a call takes longer
            than a short kernel.
    """
    for _ in range(warm):
        wait(run())
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        wait([run() for _ in range(calls)])
        seconds.append((time.perf_counter() - began) / calls)
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    return {"seconds": float(median), "spread": float((high - low) / median), "runs": repeats}


def reason(error: Exception) -> str:
    """What a table says of a case that failed: the first line of its error."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


class Records:
    """Results, one JSON object a line, each on disk before the next is measured."""

    def __init__(self, file: Path, part: str):
        self.file, self.part = file, part

    def add(self, **fields: Any) -> None:
        """Writes one result."""
        with self.file.open("a") as out:
            out.write(json.dumps({"part": self.part, **fields}) + "\n")

    def attempt(self, measure: Callable[[], dict[str, Any]], **fields: Any) -> None:
        """Writes what `measure` returns, or why it failed; the next case is tried all the same."""
        try:
            found = measure()
        except Exception as error:
            found = {"failed": reason(error)}
        self.add(**fields, **found)


def part_arguments(description: str | None, choices: Sequence[str] = ()) -> argparse.Namespace:
    """`--out FILE`, `--dry-run` and the `--case` of a part that has several."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file that results are appended to")
    parser.add_argument("--dry-run", action="store_true", help="in miniature, on any device")
    if choices:
        parser.add_argument("--case", choices=choices, required=True, help="what to measure")
    return parser.parse_args()
