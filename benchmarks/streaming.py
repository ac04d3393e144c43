"""What a stream costs: modes beside one another, long streams, and what speaking while watching gains.

    python benchmarks/streaming.py                                      # a small model, some minutes on two cores
    python benchmarks/streaming.py --preset wide --only gain            # one whose weights fit in no cache of a CPU
    python benchmarks/streaming.py --preset 3b --dtype bfloat16 --grid 16 16 --only modes gain
    python benchmarks/streaming.py --only gain --save all.json --plot streaming.png  # draws all that the file has

    modes   all modes of the engine on one video: time to the first word, frames taken in a second, and, with frames
            that come by the clock, the lag of words: a word that the schedule places after a frame is spoken so long
            after that frame arrived
    long    time per frame over a long stream
    again   a shorter one beside running the whole prefix again at each frame, as the evaluation code of the paper's
            authors does
    gain    speed-up of parallel over sequential, on one device and on two, against r, perceiving over speaking, each
            measured alone: the time to watch the video without a word, and the words of a tail with half of the video
            in the cache; the paper's model gives (1 + r) / max(1, r)
    endless 10,000 frames with each memory: slots, bytes on the device and of the process, what is compiled, time a
            frame at first and at last, and what the memory costs. Hours of video, so only where it is asked for

The model has random weights; the work does not depend on them. Times are by the clock. What is compared is run in
turns, --repeats times, compiled before, and the least time of each counts, as other work on the machine only adds to
it; of a long stream the least of each frame. Two CPU devices share all cores, and one takes them all for its products
whatever flags say, so on CPUs the second device adds next to nothing.
"""

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLAGS = "--xla_force_host_platform_device_count=2"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from endless import measure_endless, usual_policies  # noqa: E402
from flax import nnx  # noqa: E402
from jax.sharding import SingleDeviceSharding  # noqa: E402

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
from swjax.streaming import (  # noqa: E402
    DEFAULT_GEOMETRY,
    SpecialTokens,
    Variant,
)

STEPS = ("modes", "long", "again", "gain")
ASKED_FOR = ("endless",)
QUESTION = "What happens?"
WAIT_K = 3
SMALL_GRID = (4, 4)
LONG_S = 120.0
"""Runs that have taken so long together are not repeated."""
VARIANTS = {Mode.INTERLEAVED: Variant.INTERLEAVE}
HEADS = {"num_kv_heads": 2, "mrope_section": (8, 12, 12)}
MODELS = {
    "small": {"hidden_size": 384, "intermediate_size": 1024, "num_layers": 4, "num_heads": 6, **HEADS},
    "wide": {"hidden_size": 1024, "intermediate_size": 2816, "num_layers": 8, "num_heads": 16, **HEADS},
    "3b-2-layers": {
        **{"hidden_size": 2048, "intermediate_size": 11008, "num_layers": 2, "num_heads": 16},
        **{"num_kv_heads": 2, "mrope_section": (16, 24, 24)},
    },
}
"""Models with a small vision tower and the vocabulary of the tokenizer; the last has two layers of the 3B model."""


@dataclass(frozen=True)
class Run:
    """A stream that has been run: seconds from its beginning at which each frame was seen and each word spoken."""

    stream: Stream
    seconds: float
    seen_s: list[float]
    spoken_s: list[float]

    @property
    def perceiving_s(self) -> float:
        """What is left of a run that does one thing at a time without the time between words that follow each other.

        The first word after a frame, whose time is not seen apart, counts as the median of the others.
        """
        told = sorted([(at, False) for at in self.seen_s] + [(at, True) for at in self.spoken_s])
        words = [b[0] - a[0] for a, b in itertools.pairwise(told) if a[1] and b[1]]
        return self.seconds - len(self.spoken_s) * statistics.median(words)


def make_model(preset: str, dtype: str, special: SpecialTokens, vocabulary: int) -> Qwen2_5_VL:
    """A model with random weights whose answers do not end."""
    if preset in MODELS:
        text = {**MODELS[preset], "vocab_size": vocabulary}
        vision = {"out_hidden_size": text["hidden_size"]}
        config = Qwen2_5_VLConfig.preset("tiny", text=text, vision=vision, video_token_id=special.video_pad)
    else:
        config = Qwen2_5_VLConfig.preset(preset, video_token_id=special.video_pad)
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
        pixels = rng.integers(0, 256, (min(count, 8), grid[0] * grid[1], DEFAULT_GEOMETRY.patch_dim), np.uint8)
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

    def in_turns(self, what: list[tuple[BatchEngine, list[Frame], StreamSettings, Mode]]) -> list[list[Run]]:
        """Some runs of each, all of them once before any is repeated, so that a busy while is nobody's alone."""
        runs: list[list[Run]] = [[] for _ in what]
        began = time.perf_counter()
        for _ in range(self.repeats):
            for done, arguments in zip(runs, what, strict=True):
                done.append(self.run(*arguments))
            if time.perf_counter() - began > LONG_S:
                break
        return runs


def measure_modes(bench: Bench, count: int) -> None:
    """The table of modes."""
    frames, words = bench.frames(count), WAIT_K * count
    engine = bench.engine(count * bench.units, words)
    every = {}
    for mode in Mode:
        every[mode] = StreamSettings(variant=VARIANTS.get(mode, Variant.GDPE), wait_k=WAIT_K, max_tail=WAIT_K)
    every[Mode.OFFLINE] = StreamSettings(max_tail=words)
    turns = bench.in_turns([(engine, frames, settings, mode) for mode, settings in every.items()])
    best = [min(done, key=lambda run: run.seconds) for done in turns]
    runs = {mode: (every[mode], run) for mode, run in zip(every, best, strict=True)}
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


def measure_long(bench: Bench, long: int) -> dict[str, list[float]]:
    """Seconds per frame over a long stream."""
    frames, settings = bench.frames(long, SMALL_GRID), StreamSettings(wait_k=WAIT_K, max_tail=WAIT_K)
    engine = bench.engine(4 * long, WAIT_K * long)
    (runs,) = bench.in_turns([(engine, frames, settings, Mode.PARALLEL)])
    steps = np.min([np.diff(run.seen_s) for run in runs], axis=0)
    tenth = len(steps) // 10
    print(f"\n{long} frames of 4 tokens, parallel: ms a frame, median of each tenth, least of {len(runs)} runs\n")
    print(" ".join(f"{1e3 * statistics.median(steps[i * tenth : (i + 1) * tenth]):.2f}" for i in range(10)))
    return {"parallel, 4 tokens a frame": steps.tolist()}


def measure_again(bench: Bench, count: int) -> dict[str, list[float]]:
    """Seconds per frame beside those of the authors' way."""
    frames, settings = bench.frames(count), StreamSettings(wait_k=WAIT_K, max_tail=WAIT_K)
    engine = bench.engine(count * bench.units, WAIT_K * count)
    modes = Mode.PARALLEL, Mode.SEQUENTIAL, Mode.RECOMPUTE
    turns = bench.in_turns([(engine, frames, settings, mode) for mode in modes])
    runs = {mode: min(done, key=lambda run: run.seconds) for mode, done in zip(modes, turns, strict=True)}
    print(f"\n{count} frames of {bench.units} tokens, wait-{WAIT_K}, least of {len(turns[0])} runs\n")
    print("| | s in all | of these perceiving | frames encoded | tokens computed | ms a frame, first tenth | last |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for mode, one in runs.items():
        tally, steps, tenth = one.stream.tally, np.diff(one.seen_s), max(1, count // 10)
        ends = f"{1e3 * statistics.median(steps[:tenth]):.1f} | {1e3 * statistics.median(steps[-tenth:]):.1f}"
        watching = "" if mode is Mode.PARALLEL else f"{one.perceiving_s:.2f}"
        counts = f"{tally.frames_encoded:,} | {tally.tokens_computed:,}"
        print(f"| {mode} | {one.seconds:.2f} | {watching} | {counts} | {ends} |")
    quick, plain, slow = (runs[mode] for mode in modes)
    print(
        f"\nrecompute over parallel: {slow.seconds / quick.seconds:.1f} times; perceiving alone, recompute over "
        f"sequential: {slow.perceiving_s / plain.perceiving_s:.1f} times; tokens: "
        f"{slow.stream.tally.tokens_computed / quick.stream.tally.tokens_computed:.1f} times"
    )
    return {
        f"parallel, {bench.units} tokens a frame": np.diff(quick.seen_s).tolist(),
        f"recompute, {bench.units} tokens a frame": np.diff(slow.seen_s).tolist(),
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
    points = []
    for words in words_a_frame:
        settings, one = StreamSettings(wait_k=words, max_tail=words), engines["one"]
        watched, said, *turns = bench.in_turns(
            [
                (one, frames, StreamSettings(max_tail=1), Mode.OFFLINE),
                (one, frames[: count // 2], StreamSettings(max_tail=33), Mode.OFFLINE),
                (one, frames, settings, Mode.SEQUENTIAL),
                *((engine, frames, settings, Mode.PARALLEL) for engine in engines.values()),
            ]
        )
        perceiving = min(run.seconds for run in watched)
        speaking = count * words * min(statistics.median(np.diff(run.spoken_s)) for run in said)
        slow, quick, *two = (min(run.seconds for run in runs) for runs in turns)
        r = perceiving / speaking
        model, gain = (1 + r) / max(1.0, r), slow / quick
        last = f"{two[0]:.2f} | {slow / two[0]:.2f} | {model:.2f} | {slow / two[0] / model:.0%}" if two else "| | |"
        print(f"| {words} | {r:.2f} | {slow:.2f} | {quick:.2f} | {gain:.2f} | {last} |", flush=True)
        points.append((r, gain, slow / two[0] if two else None))
    return points


def draw(path: Path, costs: dict[str, list[float]], points: list[tuple[float, float, float | None]]) -> None:
    """Cost per frame, and the gain beside the paper's model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for label, seconds in costs.items():
        left.plot(range(1, len(seconds) + 1), 1e3 * np.array(seconds), label=label, linewidth=1)
    left.set(xlabel="frame", ylabel="ms from the frame before", xscale="log", yscale="log", title="Cost of a frame")
    left.legend(fontsize="small") if costs else None
    if points:
        points = sorted(points)
        r = np.geomspace(points[0][0] / 1.5, points[-1][0] * 1.5, 100)
        right.plot(r, (1 + r) / np.maximum(1, r), color="grey", label="(1 + r) / max(1, r)")
        right.plot([one[0] for one in points], [one[1] for one in points], "o-", label="one device, one pass for both")
        if points[0][2] is not None:
            right.plot([one[0] for one in points], [one[2] for one in points], "s-", label="two devices")
        right.legend(fontsize="small", loc="lower center")
    right.set(xlabel="r = perceiving / speaking", ylabel="speed-up", xscale="log", title="Parallel over sequential")
    right.set_ylim(bottom=0)
    right.set_xticks([0.25, 0.5, 1, 2, 4], labels=["1/4", "1/2", "1", "2", "4"])
    right.minorticks_off()
    figure.savefig(path, dpi=90)


def main() -> None:
    """Measure, and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--preset", default="small", help=f"{', '.join(MODELS)}, or a preset of Qwen2_5_VLConfig (small)"
    )
    parser.add_argument("--dtype", default="float32", help="of weights and computations (float32)")
    parser.add_argument("--grid", type=int, nargs=2, default=[16, 16], help="patch rows and columns of a frame (16 16)")
    parser.add_argument("--frames", type=int, default=60, help="frames of the videos (60)")
    parser.add_argument("--long", type=int, default=1000, help="frames of the long stream (1000)")
    parser.add_argument(
        "--words", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="words a frame, for the gain"
    )
    parser.add_argument("--repeats", type=int, default=6, help="runs to take the least time of (6)")
    parser.add_argument("--only", nargs="+", choices=STEPS + ASKED_FOR, default=STEPS, help="what to measure")
    parser.add_argument("--endless", type=int, default=10_000, help="frames of an endless stream (10000)")
    parser.add_argument("--sources", type=int, default=4096, help="budget of its memories (4096)")
    parser.add_argument("--memory", nargs="+", help="its memories (all, and keep_all as a control)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="add what is measured to a JSON file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture (needs matplotlib)")
    args = parser.parse_args()
    found: dict[str, Any] = {"costs": {}, "points": []}
    if args.save and args.save.exists():
        found = json.loads(args.save.read_text())
    bench = Bench(args)
    print(f"{args.preset}, {args.dtype}, {len(jax.devices())} {jax.default_backend()} device(s), {load()}", flush=True)
    if "modes" in args.only:
        measure_modes(bench, max(4, args.frames // 3))
    if "long" in args.only:
        found["costs"] |= measure_long(bench, args.long)
    if "again" in args.only:
        found["costs"] |= measure_again(bench, args.frames)
    if "gain" in args.only:
        found["points"] = measure_gain(bench, max(4, args.frames // 3), args.words)
    if "endless" in args.only:
        policies = args.memory or usual_policies(args.sources)
        of_frames = {"frames": bench.frames(8), "count": args.endless, "units": bench.units}
        measure_endless(bench.model, bench.tokenizer, policies=policies, question=QUESTION, **of_frames)
    print(f"\n{load()}")
    if args.save:
        args.save.write_text(json.dumps(found))
    if args.plot:
        draw(args.plot, found["costs"], found["points"])


def load() -> str:
    """What else the machine is doing."""
    return f"load average {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
