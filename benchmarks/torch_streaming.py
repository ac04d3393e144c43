"""An exported folder's streaming.py beside the way of the paper's authors, in PyTorch on the same device.

    python benchmarks/torch_streaming.py                                 # a small model, a minute on two cores
    python benchmarks/torch_streaming.py --preset wide --frames 12
    python benchmarks/torch_streaming.py --preset 3b --dtype bfloat16 --device cuda

    streaming.py    each frame is encoded once and each token computed once; words see what the position design says
    again           at each frame, `generate` is given the prompt, the frames so far and the words so far, without a
                    cache from before, and its words come together: their evaluation code does that, with positions
                    counted in one row and no mask of groups
    again, kept     the same with each frame encoded once, which spares that way its vision tower

The model has random weights and never ends its answer; the work does not depend on the words. All ways watch the same
frames and speak the same number of words after each. They are run in turns, --repeats times after one that does not
count. Shown are medians with the least and the largest, and ratios within a turn, so that other work on the machine
weighs on both sides.
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from streaming import MODELS, QUESTION, make_model

from swjax.data.tokenizer import SHIPPED_TOKENIZER, load_tokenizer
from swjax.hub import save_hf
from swjax.hub.tokenizer_files import copy_tokenizer
from swjax.runs.export import export_streaming_model
from swjax.runs.streaming_model import open_streaming_model
from swjax.streaming import SpecialTokens, StreamSpec

WAIT_K = 3


def export_random_model(folder: Path, preset: str, dtype: str, side: int) -> Path:
    """An exported folder whose model takes square pictures of `side` pixels as they are."""
    tokenizer = load_tokenizer(None)
    model = make_model(preset, dtype, SpecialTokens.from_tokenizer(tokenizer), len(tokenizer))
    spec = StreamSpec(variant="gdpe", wait_k=WAIT_K, min_pixels=side**2, max_pixels=side**2, max_tail=WAIT_K)
    save_hf(model, folder / "base", more_config={"streaming": asdict(spec)})
    copy_tokenizer(SHIPPED_TOKENIZER, folder / "base")
    export_streaming_model(open_streaming_model(folder / "base"), folder / "exported")
    return folder / "exported"


def import_file(file: Path) -> ModuleType:
    """The exported streaming.py, whose name is that of another benchmark."""
    found = importlib.util.spec_from_file_location("exported_streaming", file)
    if found is None or found.loader is None:
        raise SystemExit(f"{file} cannot be imported")
    module = sys.modules["exported_streaming"] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@torch.no_grad()
def speak_again(
    exported: ModuleType, model: Any, tokenizer: Any, pictures: list[np.ndarray], *, kept: bool
) -> Iterator[int]:
    """The authors' way: the whole prefix runs again at every frame, through `generate`.

    Args:
        exported: the module that makes patches and prompts of what it is given, for all ways alike.
        model: of transformers.
        tokenizer: its own.
        pictures: of the video.
        kept: whether a frame's features are kept from when it came.
    """
    spec, vision = exported.Spec.of(model), model.config.vision_config
    prompt, trailer, prefix = exported.encode_prompt(tokenizer, tokenizer.chat_template, QUESTION)
    said: list[int] = []
    patches: list[torch.Tensor] = []
    features: list[torch.Tensor] = []

    def encode(pixels: torch.Tensor, frames: int, grid: tuple[int, int]) -> torch.Tensor:
        grids = torch.tensor([[frames, *grid]], device=model.device)
        found = model.model.visual(pixels.to(model.device, model.dtype), grid_thw=grids)
        return getattr(found, "pooler_output", found)

    def embed(ids: list[int]) -> torch.Tensor:
        return model.get_input_embeddings()(torch.tensor(ids, device=model.device))

    for pixels, grid, _ in exported.iter_frames(pictures, spec, vision):
        patches.append(torch.from_numpy(pixels))
        if kept:
            features.append(encode(patches[-1], 1, grid))
        video = torch.cat(features) if kept else encode(torch.cat(patches), len(patches), grid)
        row = torch.cat([embed(prompt), video, embed([*trailer, *prefix, *said])])[None]
        found = model.generate(
            inputs_embeds=row,
            attention_mask=torch.ones(row.shape[:2], dtype=torch.long, device=model.device),
            max_new_tokens=WAIT_K,
            min_new_tokens=WAIT_K,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        words = found[0].tolist()
        said += words
        yield from words


def timed(
    speak: Callable[[], Iterator[Any]], frames: int, wait: Callable[[], None], clock: Callable[[], float]
) -> tuple[float, float]:
    """Seconds to the first word, and in all."""
    began = clock()
    words, first = 0, 0.0
    for words, _ in enumerate(speak(), 1):
        if words == 1:
            wait()
            first = clock() - began
    wait()
    if words != WAIT_K * frames:
        raise SystemExit(f"{words} words were spoken instead of {WAIT_K * frames}, so their time says nothing")
    return first, clock() - began


def shown(values: list[float], digits: int) -> str:
    """Median, and the least and the largest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Runs all ways and prints their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small", help=f"{', '.join(MODELS)}, or one of Qwen2.5-VL's sizes")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--side", type=int, default=224, help="pixels of a picture's sides, a multiple of 28")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--core-time",
        action="store_true",
        help="one thread, and the time that a core worked for it: for a machine with other work, on which the clock "
        "says little",
    )
    args = parser.parse_args()
    clock = time.process_time if args.core_time else time.perf_counter
    if args.core_time:
        torch.set_num_threads(1)

    def wait() -> None:
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()

    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (args.side, args.side, 3), np.uint8) for _ in range(2 * args.frames)]
    with tempfile.TemporaryDirectory() as name:
        folder = export_random_model(Path(name), args.preset, args.dtype, args.side)
        exported = import_file(folder / "streaming.py")
        model, tokenizer = exported.load(folder, dtype=getattr(torch, args.dtype), device=args.device)
    ways: dict[str, Callable[[], Iterator[Any]]] = {
        "streaming.py": lambda: exported.stream(model, tokenizer, pictures, QUESTION),
        "again": lambda: speak_again(exported, model, tokenizer, pictures, kept=False),
        "again, kept": lambda: speak_again(exported, model, tokenizer, pictures, kept=True),
    }
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for turn in range(args.repeats + 1):
        for way, speak in ways.items():
            times = timed(speak, args.frames, wait, clock)
            if turn:
                found[way].append(times)
    tokens = (args.side // 28) ** 2
    print(
        f"\n{args.frames} frames of {tokens} tokens, {WAIT_K} words after each; {args.preset}, {args.dtype}, ", end=""
    )
    print(f"{args.device}, torch {torch.__version__}, {torch.get_num_threads()} threads; {args.repeats} turns", end="")
    print(", time of the core\n" if args.core_time else "\n")
    print("| way | first word, ms | frames a second | s in all | times as long as streaming.py |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for way, times in found.items():
        firsts, totals = zip(*times, strict=True)
        ratios = [one[1] / ours[1] for one, ours in zip(times, found["streaming.py"], strict=True)]
        speeds = [args.frames / total for total in totals]
        print(
            f"| {way} | {shown([1e3 * first for first in firsts], 0)} | {shown(speeds, 1)} | {shown(list(totals), 2)} "
            f"| {shown(ratios, 1)} |"
        )


if __name__ == "__main__":
    main()
