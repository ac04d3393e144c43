"""What a stream costs: modes beside one another, long streams, and what speaking while watching gains.

    python benchmarks/streaming.py                                      # a small model, some minutes on two cores
    python benchmarks/streaming.py --preset 3b --dtype bfloat16 --grid 16 16 --only modes gain
    python benchmarks/streaming.py --plot streaming.png

    modes   all modes of the engine on one video: time to the first word, frames taken in a second, and, with frames
            that come by the clock, the lag of words: a word that the schedule places after a frame is spoken so long
            after that frame arrived
    cost    time per frame over a long stream; and over a shorter one beside running the whole prefix again at each
            frame, as the evaluation code of the paper's authors does
    gain    speed-up of parallel over sequential, on one device and on two, against r, perceiving over speaking: the
            words of the sequential run take the median time of a word alone, perceiving is the rest of that run; the
            paper's model gives (1 + r) / max(1, r)

The model has random weights; the work does not depend on them. Times are by the clock, the least of --repeats, compiled
before. On CPUs each device has one thread, so that two devices are two cores.
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLAGS = "--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402
from jax.sharding import SingleDeviceSharding  # noqa: E402

from swjax.data.patches import PATCH_DIM  # noqa: E402
from swjax.data.tokenizer import load_tokenizer  # noqa: E402
from swjax.inference import (  # noqa: E402
    BatchEngine,
    Frame,
    FrameSeen,
    Mode,
    Request,
    Stream,
    StreamSettings,
    TokenSpoken,
    run_streams,
)
from swjax.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig  # noqa: E402
from swjax.streaming import SpecialTokens, Variant  # noqa: E402

STEPS = ("modes", "cost", "gain")
QUESTION = "What happens?"
WAIT_K = 3
SMALL_GRID = (4, 4)
LONG_S = 20.0
"""Runs that have taken so long together are not repeated."""
VARIANTS = {Mode.INTERLEAVED: Variant.INTERLEAVE}
SMALL = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_layers": 4,
    "num_heads": 6,
    "num_kv_heads": 2,
    "mrope_section": (8, 12, 12),
}


@dataclass(frozen=True)
class Run:
    """A stream that has been run: seconds from its beginning at which each frame was seen and each word spoken."""

    stream: Stream
    seconds: float
    seen_s: list[float]
    spoken_s: list[float]


def make_model(preset: str, dtype: str, special: SpecialTokens, vocabulary: int) -> Qwen2_5_VL:
    """A model with random weights whose answers do not end."""
    if preset == "small":
        text = {**SMALL, "vocab_size": vocabulary}
        config = Qwen2_5_VLConfig.preset("tiny", text=text, vision={"out_hidden_size": SMALL["hidden_size"]})
    else:
        config = Qwen2_5_VLConfig.preset(preset)
    model = Qwen2_5_VL(config, rngs=nnx.Rngs(0), param_dtype=dtype)
    tied = config.text.tie_word_embeddings
    head = model.decoder.embedding_vd if tied else model.decoder.head_vd
    head[...] = head[...].at[special.im_end].set(0)
    return model


class Bench:
    """The model, its tokenizer and the frames' size."""

    def __init__(self, args: argparse.Namespace):
        self.tokenizer = load_tokenizer(None)
        special = SpecialTokens.from_tokenizer(self.tokenizer)
        self.model = make_model(args.preset, args.dtype, special, len(self.tokenizer))
        self.grid, self.repeats = tuple(args.grid), args.repeats
        self.units = self.grid[0] * self.grid[1] // 4
        self._engines: dict[tuple[int, int, bool], BatchEngine] = {}

    def frames(self, count: int, grid: tuple[int, int] | None = None) -> list[Frame]:
        """Random frames, one a second."""
        grid = grid or self.grid
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (min(count, 8), grid[0] * grid[1], PATCH_DIM), np.uint8)
        return [Frame(pixels[index % len(pixels)], grid, float(index)) for index in range(count)]

    def engine(self, sources: int, words: int, *, apart: bool = False) -> BatchEngine:
        """An engine of one row, with room for so many sources and so many words, warmed up."""
        key = sources, words, apart
        if key not in self._engines:
            devices, word_slots, slots = jax.devices(), words + 128, sources + words + 256
            placement = (SingleDeviceSharding(devices[0]), SingleDeviceSharding(devices[1])) if apart else None
            engine = BatchEngine(
                self.model,
                rows=1,
                frame_units=self.units,
                slots=slots,
                word_slots=word_slots,
                max_slots=slots,
                placement=placement,
            )
            for grid in (self.grid, SMALL_GRID):
                engine.warm_up(grid)
            self._engines[key] = engine
        return self._engines[key]

    def run(
        self, engine: BatchEngine, frames: Iterable[Frame], settings: StreamSettings, mode: Mode, **how: Any
    ) -> Run:
        """One stream from beginning to end."""
        seen, spoken, began = [], [], time.perf_counter()
        request = Request(QUESTION, frames, settings, mode, **how)
        for _, stream, event in run_streams(engine, self.tokenizer, [request]):  # noqa: B007
            if isinstance(event, FrameSeen):
                seen.append(event.wall_s)
            elif isinstance(event, TokenSpoken):
                spoken.append(event.wall_s)
        seconds = time.perf_counter() - began
        if stream.ended != "token_limit":
            raise SystemExit(f"the stream ended by {stream.ended}, so its time says nothing")
        return Run(stream, seconds, seen, spoken)

    def best(self, engine: BatchEngine, frames: list[Frame], settings: StreamSettings, mode: Mode) -> Run:
        """The quickest of some runs, the first of which may still compile."""
        runs: list[Run] = []
        while len(runs) < self.repeats and sum(run.seconds for run in runs) < LONG_S:
            runs.append(self.run(engine, frames, settings, mode))
        return min(runs, key=lambda run: run.seconds)


def measure_modes(bench: Bench, count: int) -> None:
    """The table of modes."""
    frames, words = bench.frames(count), WAIT_K * count
    engine = bench.engine(count * bench.units, words)
    runs = {}
    for mode in Mode:
        settings = StreamSettings(variant=VARIANTS.get(mode, Variant.GDPE), wait_k=WAIT_K, max_tail=WAIT_K)
        if mode is Mode.OFFLINE:
            settings = StreamSettings(max_tail=words)
        runs[mode] = (settings, bench.best(engine, frames, settings, mode))
    # A pace that one thing at a time can just about keep: nine tenths of what it takes in.
    pace = 0.9 * count / runs[Mode.SEQUENTIAL][1].seconds
    print(f"\n{count} frames of {bench.units} tokens, wait-{WAIT_K}; by the clock: {pace:.2f} frames a second\n")
    print("| mode | first word, ms | frames a second | s in all | lag by the clock, ms: median | largest |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for mode, (settings, run) in runs.items():
        timed = bench.run(engine, frames, settings, mode, speed=pace)
        lags = [at - frames[min(index // WAIT_K, count - 1)].video_s / pace for index, at in enumerate(timed.spoken_s)]
        figures = f"{1e3 * run.spoken_s[0]:.1f} | {count / run.seconds:.1f} | {run.seconds:.2f}"
        print(f"| {mode} | {figures} | {1e3 * statistics.median(lags):.1f} | {1e3 * max(lags):.1f} |")


def measure_cost(bench: Bench, count: int, long: int) -> dict[str, list[float]]:
    """Seconds per frame over a long stream, and over a shorter one in the authors' way."""
    frames, settings = bench.frames(long, SMALL_GRID), StreamSettings(wait_k=WAIT_K, max_tail=WAIT_K)
    engine = bench.engine(4 * long, WAIT_K * long)
    run = bench.best(engine, frames, settings, Mode.PARALLEL)
    steps = np.diff(run.seen_s)
    tenth = len(steps) // 10
    print(f"\n{long} frames of 4 tokens, parallel: ms a frame, median of each tenth of the stream\n")
    print(" ".join(f"{1e3 * statistics.median(steps[i * tenth : (i + 1) * tenth]):.2f}" for i in range(10)))

    frames, engine = bench.frames(count), bench.engine(count * bench.units, WAIT_K * count)
    runs = {mode: bench.best(engine, frames, settings, mode) for mode in (Mode.PARALLEL, Mode.RECOMPUTE)}
    quick, slow = runs[Mode.PARALLEL], runs[Mode.RECOMPUTE]
    print(f"\n{count} frames of {bench.units} tokens, wait-{WAIT_K}\n")
    print("| | s in all | frames encoded | tokens computed | ms a frame, first tenth | last tenth |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for mode, one in runs.items():
        tally, steps, tenth = one.stream.tally, np.diff(one.seen_s), max(1, count // 10)
        ends = f"{1e3 * statistics.median(steps[:tenth]):.1f} | {1e3 * statistics.median(steps[-tenth:]):.1f}"
        print(f"| {mode} | {one.seconds:.2f} | {tally.frames_encoded:,} | {tally.tokens_computed:,} | {ends} |")
    print(f"\nrecompute over parallel: {slow.seconds / quick.seconds:.1f} times")
    return {
        f"parallel, {bench.units} tokens a frame": np.diff(quick.seen_s).tolist(),
        f"recompute, {bench.units} tokens a frame": np.diff(slow.seen_s).tolist(),
        "parallel, 4 tokens a frame": np.diff(run.seen_s).tolist(),
    }


def measure_gain(bench: Bench, count: int, words_a_frame: list[int]) -> list[tuple[float, float, float | None]]:
    """r, and the speed-up of one device and of two."""
    room = count * bench.units, count * max(words_a_frame)
    frames, engines = bench.frames(count), {"one": bench.engine(*room)}
    if len(jax.devices()) > 1:
        engines["two"] = bench.engine(*room, apart=True)
    print(f"\n{count} frames of {bench.units} tokens; the paper's model is (1 + r) / max(1, r)\n")
    print("| words a frame | r | sequential, s | parallel, s | gain | two devices, s | gain | model | of model |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    tail = bench.best(engines["one"], frames, StreamSettings(max_tail=33), Mode.OFFLINE)
    word_s = statistics.median(np.diff(tail.spoken_s))
    points = []
    for words in words_a_frame:
        settings = StreamSettings(wait_k=words, max_tail=words)
        slow = bench.best(engines["one"], frames, settings, Mode.SEQUENTIAL)
        speaking = len(slow.spoken_s) * word_s
        perceiving = slow.seconds - speaking
        if perceiving <= 0:
            print(f"| {words} | its words alone would take longer than the run: the machine is too busy to tell |")
            continue
        r = perceiving / speaking
        quick = bench.best(engines["one"], frames, settings, Mode.PARALLEL)
        two = bench.best(engines["two"], frames, settings, Mode.PARALLEL) if "two" in engines else None
        model = (1 + r) / max(1.0, r)
        gain, apart = slow.seconds / quick.seconds, slow.seconds / two.seconds if two else None
        last = f"{two.seconds:.2f} | {apart:.2f} | {model:.2f} | {apart / model:.0%}" if two and apart else "| | |"
        print(f"| {words} | {r:.2f} | {slow.seconds:.2f} | {quick.seconds:.2f} | {gain:.2f} | {last} |")
        points.append((r, gain, apart))
    return points


def draw(path: Path, costs: dict[str, list[float]], points: list[tuple[float, float, float | None]]) -> None:
    """Cost per frame, and the gain beside the paper's model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for label, seconds in costs.items():
        left.plot(range(1, len(seconds) + 1), 1e3 * np.array(seconds), label=label, linewidth=1)
    left.set(xlabel="frame", ylabel="ms from the frame before", xscale="log", yscale="log", title="Cost of a frame")
    left.legend() if costs else None
    if points:
        r = np.geomspace(min(point[0] for point in points) / 1.5, max(point[0] for point in points) * 1.5, 100)
        right.plot(r, (1 + r) / np.maximum(1, r), color="grey", label="(1 + r) / max(1, r)")
        right.plot([one[0] for one in points], [one[1] for one in points], "o-", label="one device, one pass for both")
        if points[0][2] is not None:
            right.plot([one[0] for one in points], [one[2] for one in points], "s-", label="two devices")
        right.legend()
    right.set(xlabel="r = perceiving / speaking", ylabel="speed-up", xscale="log", title="Parallel over sequential")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small", help="small, or a preset of Qwen2_5_VLConfig (small)")
    parser.add_argument("--dtype", default="float32", help="of weights and computations (float32)")
    parser.add_argument("--grid", type=int, nargs=2, default=[16, 16], help="patch rows and columns of a frame (16 16)")
    parser.add_argument("--frames", type=int, default=60, help="frames of the videos (60)")
    parser.add_argument("--long", type=int, default=1000, help="frames of the long stream (1000)")
    parser.add_argument(
        "--words", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="words a frame, for the gain"
    )
    parser.add_argument("--repeats", type=int, default=6, help="runs to take the least time of (6)")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS, help="what to measure (all)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture (needs matplotlib)")
    args = parser.parse_args()
    bench = Bench(args)
    print(f"{args.preset}, {args.dtype}, {len(jax.devices())} {jax.default_backend()} device(s)")
    costs, points = {}, []
    if "modes" in args.only:
        measure_modes(bench, max(4, args.frames // 3))
    if "cost" in args.only:
        costs = measure_cost(bench, args.frames, args.long)
    if "gain" in args.only:
        points = measure_gain(bench, max(4, args.frames // 3), args.words)
    if args.plot:
        draw(args.plot, costs, points)


if __name__ == "__main__":
    main()
