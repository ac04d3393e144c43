"""The engine at the shapes of 3B and 7B with random weights: frames of 224 x 224, three words after each.

modes     frames a second taken in while speaking; by the clock, the time from a frame's arrival to its first word;
          the time from a question to the first word
gain      parallel over sequential against r, perceiving over speaking; the paper's model is (1 + r) / max(1, r)
streams   frames a second of several streams at once
long      the time of a frame over a stream of 2,000
"""

import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import jax
import numpy as np
from common import (
    FRAME_PATCHES,
    FRAME_TOKENS,
    MODELS,
    PATCH_NUMBERS,
    TINY_MODELS,
    WAIT_K,
    Records,
    part_arguments,
    reason,
)
from flax import nnx
from profiled import kernels_of
from train_step import model_config

from swjax.attention import SpanAttention
from swjax.data.tokenizer import load_tokenizer
from swjax.inference import (
    BatchEngine,
    Frame,
    FrameSeen,
    Mode,
    Request,
    StreamSettings,
    TokenSpoken,
    run_streams,
)
from swjax.inference.batch_engine import CHUNK_SIZES
from swjax.models.qwen2_5_vl import Qwen2_5_VL
from swjax.streaming import SpecialTokens

QUESTION = "What happens?"
GRID = (16, 16)
WORDS = (1, 3, 8, 16, 32)
STREAMS = (4, 16)
TINY_FRAMES = 6
"""Of every case in miniature, so that they share what is compiled."""


class Bench:
    """A model with random weights whose answers do not end, and its tokenizer."""

    def __init__(self, name: str, attention: str, dry_run: bool):
        self.tokenizer, self.chunks = load_tokenizer(None), (64,) if dry_run else CHUNK_SIZES
        special = SpecialTokens.from_tokenizer(self.tokenizer)
        config = model_config((TINY_MODELS if dry_run else MODELS)[name])
        config = dataclasses.replace(config, video_token_id=special.video_pad, eos_token_id=special.im_end)
        dtype = "float32" if dry_run else "bfloat16"
        tied = config.text.tie_word_embeddings

        @nnx.jit
        def make() -> Qwen2_5_VL:
            attend = SpanAttention(attention)
            model = Qwen2_5_VL(config, rngs=nnx.Rngs(0), param_dtype=dtype, attention=attend, vision_attention=attend)
            head = model.decoder.embedding_vd if tied else model.decoder.head_vd
            # Only words that the tokenizer has, and never the end.
            words = np.arange(config.text.vocab_size) < len(self.tokenizer)
            words[special.im_end] = False
            head[...] = head[...] * words[:, None].astype(dtype)
            return model

        self.model = make()

    def frames(self, count: int) -> list[Frame]:
        """Random frames, one a second."""
        pixels = np.random.default_rng(0).integers(0, 256, (min(count, 8), FRAME_PATCHES, PATCH_NUMBERS), np.uint8)
        return [Frame(pixels[index % len(pixels)], GRID, float(index)) for index in range(count)]

    def engine(self, frames: int, words: int, rows: int = 1) -> BatchEngine:
        """An engine with room for so many frames and words in each row, compiled."""
        slots = frames * FRAME_TOKENS + words + 256
        engine = BatchEngine(
            self.model,
            rows=rows,
            frame_units=FRAME_TOKENS,
            slots=slots,
            word_slots=words + 128,
            max_slots=slots,
            chunk_sizes=self.chunks,
        )
        engine.warm_up(GRID)
        return engine

    def run(self, engine: BatchEngine, requests: list[Request]) -> tuple[float, list[float], list[float]]:
        """Seconds of it all, and those at which the first stream saw its frames and spoke its words."""
        seen, spoken, began = [], [], time.perf_counter()
        for number, _, event in run_streams(engine, self.tokenizer, requests):
            if number == 0 and isinstance(event, FrameSeen):
                seen.append(event.wall_s)
            elif number == 0 and isinstance(event, TokenSpoken):
                spoken.append(event.wall_s)
        return time.perf_counter() - began, seen, spoken


def measure_modes(bench: Bench, engine: BatchEngine, records: Records, name: str, count: int) -> None:
    """One stream, unpaced and by the clock."""
    frames, settings = bench.frames(count), StreamSettings(wait_k=WAIT_K, max_tail=WAIT_K)
    for mode in (Mode.PARALLEL, Mode.SEQUENTIAL):
        request = Request(QUESTION, frames, settings, mode)
        bench.run(engine, [request])
        runs = [bench.run(engine, [request]) for _ in range(3)]
        seconds, _, spoken = min(runs, key=lambda run: run[0])
        pace = 0.8 * count / seconds
        _, _, by_clock = bench.run(engine, [Request(QUESTION, frames, settings, mode, speed=pace)])
        lags = [by_clock[index] - frames[index // WAIT_K].video_s / pace for index in range(0, len(by_clock), WAIT_K)]
        records.add(
            model=name,
            method=f"swjax {mode}",
            case="modes",
            frames=count,
            frames_per_second=count / seconds,
            frame_to_word_ms=1e3 * statistics.median(lags),
            frame_to_word_ms_most=1e3 * max(lags),
            question_to_word_ms=1e3 * spoken[0],
            profile=kernels_of(lambda request=request: bench.run(engine, [request])),
        )


def measure_gain(
    bench: Bench, engine: BatchEngine, records: Records, name: str, count: int, words_a_frame: tuple[int, ...]
) -> None:
    """The speed-up of parallel over sequential on one device."""
    frames = bench.frames(count)

    def least(settings: StreamSettings, mode: Mode) -> tuple[float, list[float], list[float]]:
        request = Request(QUESTION, frames, settings, mode)
        bench.run(engine, [request])
        return min((bench.run(engine, [request]) for _ in range(2)), key=lambda run: run[0])

    perceiving = least(StreamSettings(max_tail=1), Mode.OFFLINE)[0]
    _, _, spoken = least(StreamSettings(max_tail=33), Mode.OFFLINE)
    word = statistics.median(np.diff(spoken))
    for words in words_a_frame:
        settings = StreamSettings(wait_k=words, max_tail=words)
        slow, quick = (least(settings, mode)[0] for mode in (Mode.SEQUENTIAL, Mode.PARALLEL))
        r = perceiving / (count * words * word)
        model = (1 + r) / max(1.0, r)
        records.add(
            model=name,
            method="parallel over sequential",
            case="gain",
            words=words,
            r=r,
            sequential_s=slow,
            parallel_s=quick,
            gain=slow / quick,
            of_model=slow / quick / model,
        )


def measure_streams(bench: Bench, records: Records, name: str, count: int, streams: tuple[int, ...]) -> None:
    """Many streams in one engine."""
    settings = StreamSettings(wait_k=WAIT_K, max_tail=WAIT_K)
    for rows in streams:

        def measure(rows: int = rows) -> dict[str, Any]:
            engine = bench.engine(count, WAIT_K * count, rows)
            requests = [Request(QUESTION, bench.frames(count), settings, Mode.PARALLEL) for _ in range(rows)]
            bench.run(engine, requests)
            seconds = bench.run(engine, requests)[0]
            return {"frames_per_second": rows * count / seconds, "words_per_second": rows * count * WAIT_K / seconds}

        records.attempt(measure, model=name, method="swjax parallel", case="streams", streams=rows)


def measure_long(bench: Bench, records: Records, name: str, count: int) -> None:
    """A long stream, each tenth of it."""
    frames, settings = bench.frames(count), StreamSettings(wait_k=WAIT_K, max_tail=WAIT_K)
    engine = bench.engine(count, WAIT_K * count)
    seconds, seen, _ = bench.run(engine, [Request(QUESTION, frames, settings, Mode.PARALLEL)])
    steps = np.diff(seen)
    tenths = [1e3 * float(np.median(part)) for part in np.array_split(steps, min(10, len(steps)))]
    memory = jax.devices()[0].memory_stats() or {}
    records.add(
        model=name,
        method="swjax parallel",
        case="long",
        frames=count,
        frames_per_second=count / seconds,
        ms_a_frame=tenths,
        peak_bytes=memory.get("peak_bytes_in_use"),
    )


def main() -> None:
    """One model, all cases, each of which may fail alone."""
    args = part_arguments(
        __doc__, [*MODELS, *(f"{name}:{attention}" for name in MODELS for attention in ("gpu", "mosaic"))]
    )
    model, _, attention = args.case.partition(":")
    name, tiny = args.case, args.dry_run
    records, bench = Records(args.out, "streaming"), Bench(model, "auto" if tiny else attention or "auto", tiny)
    count, fewer, words = (TINY_FRAMES, TINY_FRAMES, (1, WAIT_K)) if tiny else (60, 20, WORDS)
    began = time.perf_counter()
    engine = bench.engine(count, max(WAIT_K * count, max(words) * fewer))
    records.add(model=name, case="compile", method="swjax", seconds=time.perf_counter() - began)
    for case, measure in {
        "modes": lambda: measure_modes(bench, engine, records, name, count),
        "gain": lambda: measure_gain(bench, engine, records, name, fewer, words),
        "streams": lambda: measure_streams(bench, records, name, fewer, (1, 2) if tiny else STREAMS),
        "long": lambda: measure_long(bench, records, name, TINY_FRAMES if tiny else 2000),
    }.items():
        if tiny and attention and case != "modes":  # a CPU has one attention, so it would be the same once more
            records.add(model=name, case=case, method=f"as {model} in miniature")
            continue
        try:
            measure()
        except Exception as error:
            records.add(model=name, case=case, failed=reason(error))


if __name__ == "__main__":
    main()
