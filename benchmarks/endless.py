"""The part of benchmarks/streaming.py that streams for hours: what grows, and what a memory costs.

Times are also those of the process's own CPU, all threads together, which tell more on a machine that does other work.
Before each policy's stream a short one is replayed without a cache, as in the tests: the words must be the same.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "inference"))
from full_passes import QUESTION, make_frames
from replay import Noting, replayed_scores

from swjax.inference import BatchEngine, Frame, Request, StreamSettings, run_streams
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
    *("host MB of blocks", "compiled since frame 50", "words as replayed"),
    *("ms a frame, second tenth", "last", "last over second", "compaction, share of time"),
    *("CPU ms a frame, second tenth", "last", "last over second", "compaction, share of CPU"),
)


@dataclass
class Watch:
    """What is noted of one stream."""

    slots: list[int] = field(default_factory=list)
    device_bytes: list[int] = field(default_factory=list)
    resident_bytes: list[int] = field(default_factory=list)
    compiled: list[int] = field(default_factory=list)
    frame_s: list[float] = field(default_factory=list)
    frame_cpu_s: list[float] = field(default_factory=list)
    compaction_s: float = 0.0
    compaction_cpu_s: float = 0.0
    host_bytes: int = 0


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
        is_replayed = memory == KEEP_ALL or replays(model, tokenizer, name)
        engine = _engine(model, settings, units, frames[0].grid_hw)
        watch = _watch(engine, tokenizer, settings, frames, length, question=question, compilations=compilations)
        print(_row(name, watch, "yes" if is_replayed else "**no**"), flush=True)


def replays(model: Any, tokenizer: Any, name: str) -> bool:
    """Whether a policy's words over 16 frames, with a budget of half of them, are those of a replay without a cache."""
    policy, numbers = name.split(":")
    positions = [one for one in numbers.split(",") if one.startswith("positions=")]
    if positions and positions != ["positions=kept"]:
        policy, positions = "window", []  # a replay knows ids that are kept alone
    counts = (2, 1, 3, 0, 2, 2, 2, 0, 0, 3, 2, 1, 2, 2, 1, 0)
    memory = Noting(memory_of(f"{policy}:sources=60,words=8,first_words=2"))
    settings = StreamSettings(counts=counts[:-1], max_tail=6, memory=memory)
    engine = BatchEngine(model, rows=1, frame_units=4, slots=256, word_slots=64, max_slots=256, chunk_sizes=(16,))
    frames = make_frames(16, 2, (4, 4))
    streams = {at: stream for at, stream, _ in run_streams(engine, tokenizer, [Request(QUESTION, frames, settings)])}
    answer = streams[0].answer
    if streams[0].fault is not None or len(answer) != sum(counts) + 6 or not memory.kept:
        raise SystemExit(f"{name}: the stream to be replayed ended by {streams[0].ended}: {streams[0].fault}")
    scores = replayed_scores(model, tokenizer, frames, settings, counts, answer)
    return scores.argmax(axis=-1).tolist() == answer


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
        began, cpu = time.perf_counter(), time.process_time()
        engine.see(stream, replace(frames[index % len(frames)], video_s=float(index)), last=index == count - 1)
        while engine.has_work:
            engine.step()
        watch.frame_s.append(time.perf_counter() - began)
        watch.frame_cpu_s.append(time.process_time() - cpu)
        if stream.fault is not None or (stream.ended and index < count - 1):
            raise SystemExit(f"the stream ended at frame {index} by {stream.ended}: {stream.fault}")
        watch.slots.append(engine._speaker.slots)
        watch.compiled.append(len(compilations))
        if index in (SETTLED, 500, count - 1):
            watch.device_bytes.append(sum(array.nbytes for array in jax.live_arrays()))
            watch.resident_bytes.append(4096 * int(Path("/proc/self/statm").read_text().split()[1]))
            watch.host_bytes = stream.tally.host_bytes
    return watch


def _timed(compact: Callable[..., None], engine: BatchEngine, watch: Watch) -> Callable[..., None]:
    """Compaction with its time, until all of it is done; what was under way before is not counted."""

    def timed(*lanes: Any) -> None:
        if not (scheduler := engine._open()[0]._scheduler)._full:
            return
        jax.block_until_ready(engine._speaker._cache)
        began, cpu = time.perf_counter(), time.process_time()
        compact(*lanes)
        jax.block_until_ready(engine._speaker._cache)
        if not scheduler._full:
            watch.compaction_s += time.perf_counter() - began
            watch.compaction_cpu_s += time.process_time() - cpu

    return timed


def _times(frame_s: Sequence[float], compaction_s: float) -> tuple[str, ...]:
    """Milliseconds of a frame early and late, how many times as long it took late, and the share of compactions.

    The very first frames are few tokens; what is compared is full memories.
    """
    tenth = max(1, len(frame_s) // 10)
    first, last = (statistics.median(one) for one in (frame_s[tenth : 2 * tenth], frame_s[-tenth:]))
    return f"{1e3 * first:.2f}", f"{1e3 * last:.2f}", f"{last / first:.2f}", f"{compaction_s / sum(frame_s):.1%}"


def _row(name: str, watch: Watch, is_replayed: str) -> str:
    settled = min(SETTLED, len(watch.slots) - 1)
    figures = (
        f"{len(watch.frame_s):,}",
        f"{watch.slots[settled]:,}",
        f"{watch.slots[-1]:,}",
        *(f"{watch.device_bytes[at] / 1e6:.1f}" for at in (0, -1)),
        *(f"{watch.resident_bytes[at] / 1e6:.0f}" for at in (min(1, len(watch.resident_bytes) - 1), -1)),
        f"{watch.host_bytes / 1e6:.1f}",
        f"{watch.compiled[-1] - watch.compiled[settled]}",
        is_replayed,
        *_times(watch.frame_s, watch.compaction_s),
        *_times(watch.frame_cpu_s, watch.compaction_cpu_s),
    )
    return f"| {name} | " + " | ".join(figures) + " |"


def usual_policies(sources: int) -> list[str]:
    """All that have a budget, with one of so many sources, and the control that keeps all."""
    names = ("window", "uniform", "random", "infinipot_v", "keydiff", "ma_lmm", "streammem", "vsb", "peak_end", "rekv")
    extra = [f"window:sources={sources},words=256,positions={one}" for one in ("contiguous", "apart")]
    return ["keep_all", *(f"{name}:sources={sources},words=256" for name in names), *extra]
