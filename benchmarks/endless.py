"""The part of benchmarks/streaming.py that streams for hours: what grows, and what a memory costs."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax

from swjax.inference import BatchEngine, Frame, StreamSettings
from swjax.inference.memory import KEEP_ALL, memory_of
from swjax.inference.room import bounded_room
from swjax.inference.sizes import CHUNK_SIZES, TILE

CONTROL_SHARE = 5
"""A fifth of the frames is enough to see that a stream that keeps all grows."""
SETTLED = 50
"""Frame from which on nothing may be compiled or grow."""
COMPILED = "/jax/core/compile/backend_compile_duration"
COLUMNS = (
    *("memory", "frames", "slots, frame 50", "last", "device MB, frame 50", "last", "RSS MB, frame 500", "last"),
    *("compiled since frame 50", "ms a frame, second tenth", "last", "last over second", "compaction, share of time"),
)


@dataclass
class Watch:
    """What is noted of one stream."""

    slots: list[int] = field(default_factory=list)
    device_bytes: list[int] = field(default_factory=list)
    resident_bytes: list[int] = field(default_factory=list)
    compiled: list[int] = field(default_factory=list)
    frame_s: list[float] = field(default_factory=list)
    compaction_s: float = 0.0


def measure_endless(
    model: Any,
    tokenizer: Any,
    frames: Sequence[Frame],
    count: int,
    *,
    policies: Sequence[str],
    question: str,
    units: int,
) -> None:
    """Stream `count` frames with each policy, and print what grew."""
    compilations: list[float] = []

    def note(event: str, seconds: float, **_: Any) -> None:
        if event == COMPILED:
            compilations.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(note)
    print(
        f"\n{count} frames of {units} tokens, a word after each, parallel; keep_all: {count // CONTROL_SHARE} frames\n"
    )
    print(f"| {' | '.join(COLUMNS)} |")
    print("| --- " + "| ---: " * (len(COLUMNS) - 1) + "|")
    for name in policies:
        memory = memory_of(name)
        length = count // CONTROL_SHARE if memory == KEEP_ALL else count
        settings = StreamSettings(wait_k=1, max_tail=1, memory=memory)
        engine = _engine(model, settings, units, frames[0].grid_hw)
        watch = _watch(engine, tokenizer, settings, frames, length, question=question, compilations=compilations)
        print(_row(name, watch), flush=True)


def _engine(model: Any, settings: StreamSettings, units: int, grid_hw: tuple[int, int]) -> BatchEngine:
    """An engine whose rows are as long as the memory needs; for one that keeps all, they grow."""
    room = bounded_room(settings, units, CHUNK_SIZES[-1] + TILE, 128)
    words, sources = room or (256, 1024)
    engine = BatchEngine(
        model, rows=1, frame_units=units, slots=words + sources, word_slots=words, grow_ahead=room is not None
    )
    engine.warm_up(grid_hw, settings.memory)
    return engine


def _watch(
    engine: BatchEngine,
    tokenizer: Any,
    settings: StreamSettings,
    frames: Sequence[Frame],
    count: int,
    *,
    question: str,
    compilations: Sequence[float],
) -> Watch:
    watch = Watch()
    stream = engine.open(tokenizer, question=question, settings=settings)
    stream.compact = _timed(stream.compact, engine, watch)  # type: ignore[method-assign]
    for index in range(count):
        began = time.perf_counter()
        engine.see(stream, replace(frames[index % len(frames)], video_s=float(index)), last=index == count - 1)
        while engine.has_work:
            engine.step()
        watch.frame_s.append(time.perf_counter() - began)
        if stream.fault is not None or (stream.ended and index < count - 1):
            raise SystemExit(f"the stream ended at frame {index} by {stream.ended}: {stream.fault}")
        watch.slots.append(engine._speaker.slots)
        watch.compiled.append(len(compilations))
        if index in (SETTLED, 500, count - 1):
            watch.device_bytes.append(sum(array.nbytes for array in jax.live_arrays()))
            watch.resident_bytes.append(4096 * int(Path("/proc/self/statm").read_text().split()[1]))
    return watch


def _timed(compact: Callable[..., None], engine: BatchEngine, watch: Watch) -> Callable[..., None]:
    """Compaction with its time, until all of it is done; what was under way before is not counted."""

    def timed(*lanes: Any) -> None:
        if not (scheduler := engine._open()[0]._scheduler)._full:
            return
        jax.block_until_ready(engine._speaker._cache)
        began = time.perf_counter()
        compact(*lanes)
        jax.block_until_ready(engine._speaker._cache)
        watch.compaction_s += time.perf_counter() - began if not scheduler._full else 0.0

    return timed


def _row(name: str, watch: Watch) -> str:
    tenth = max(1, len(watch.frame_s) // 10)
    # The very first frames are few tokens; what is compared is full memories.
    first, last = (statistics.median(one) for one in (watch.frame_s[tenth : 2 * tenth], watch.frame_s[-tenth:]))
    settled = min(SETTLED, len(watch.slots) - 1)
    figures = (
        f"{len(watch.frame_s):,}",
        f"{watch.slots[settled]:,}",
        f"{watch.slots[-1]:,}",
        *(f"{watch.device_bytes[at] / 1e6:.1f}" for at in (0, -1)),
        *(f"{watch.resident_bytes[at] / 1e6:.0f}" for at in (min(1, len(watch.resident_bytes) - 1), -1)),
        f"{watch.compiled[-1] - watch.compiled[settled]}",
        *(f"{1e3 * one:.2f}" for one in (first, last)),
        f"{last / first:.2f}",
        f"{watch.compaction_s / sum(watch.frame_s):.1%}",
    )
    return f"| {name} | " + " | ".join(figures) + " |"


def usual_policies(sources: int) -> list[str]:
    """All that have a budget, with one of so many sources, and the control that keeps all."""
    names = ("window", "uniform", "random", "infinipot_v", "keydiff", "ma_lmm", "streammem", "vsb", "peak_end")
    extra = [f"window:sources={sources},words=256,positions={one}" for one in ("contiguous", "apart")]
    return ["keep_all", *(f"{name}:sources={sources},words=256" for name in names), *extra]
