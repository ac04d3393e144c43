"""Memory policies: what a stream keeps of what it has seen and said. A new one is a file here and a row of the table.

After each frame a policy may drop tokens. What stays keeps its ids and its rotated keys; the engine moves it together,
so that what every query sees remains one span.
"""

from collections.abc import Callable

from swjax.inference.memory.book import TEXT, Book, Bounds, Kept, Memory, Moves, StoredKeys
from swjax.inference.memory.infinipot_v import InfiniPotV
from swjax.inference.memory.keep_all import KeepAll
from swjax.inference.memory.keydiff import KeyDiff
from swjax.inference.memory.ma_lmm import MALMM
from swjax.inference.memory.peak_end import PeakEnd
from swjax.inference.memory.random import Random
from swjax.inference.memory.rekv import ReKV
from swjax.inference.memory.streammem import StreamMem
from swjax.inference.memory.uniform import Uniform
from swjax.inference.memory.vsb import VisionSinkBuckets
from swjax.inference.memory.window import Window
from swjax.streaming.named import make_named

MEMORIES: dict[str, Callable[..., Memory]] = {
    "keep_all": KeepAll,
    "window": Window,
    "uniform": Uniform,
    "random": Random,
    "infinipot_v": InfiniPotV,
    "keydiff": KeyDiff,
    "ma_lmm": MALMM,
    "streammem": StreamMem,
    "vsb": VisionSinkBuckets,
    "peak_end": PeakEnd,
    "rekv": ReKV,
}
"""Policies by name: frozen dataclasses whose fields are whole numbers or words. Others may be added from outside."""

KEEP_ALL = KeepAll()

__all__ = [
    "KEEP_ALL",
    "MALMM",
    "MEMORIES",
    "TEXT",
    "Book",
    "Bounds",
    "InfiniPotV",
    "KeepAll",
    "Kept",
    "KeyDiff",
    "Memory",
    "Moves",
    "PeakEnd",
    "Random",
    "ReKV",
    "StoredKeys",
    "StreamMem",
    "Uniform",
    "VisionSinkBuckets",
    "Window",
    "bounds_of",
    "memory_of",
]


def bounds_of(memory: Memory, frame_units: int, prompt: int) -> Bounds | None:
    """The most that a policy lets a stream store; None where it sets no bound.

    Args:
        memory: the policy.
        frame_units: tokens of the largest frame.
        prompt: tokens of the prompt.
    """
    bounds: Callable[[int, int], Bounds] | None = getattr(memory, "bounds", None)
    return None if bounds is None else bounds(frame_units, prompt)


def positions_of(memory: Memory) -> str:
    """What becomes of the position ids of what a policy keeps (`swjax.inference.memory.anchor`)."""
    return getattr(memory, "positions", "kept")


def memory_of(text: str) -> Memory:
    """A policy from its name and its numbers: `keep_all`, `window`, `window:frames=32,words=256`.

    Raises:
        ValueError: if there is no such policy, it has no such number, or a number is given twice or out of range.
    """
    return make_named(text, MEMORIES, "memory")
