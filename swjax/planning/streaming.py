"""Compiles the pass of the streaming engine for a chip that is not at hand, and says what it takes."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from swjax.chips import chip_of
from swjax.inference.lane import lower_pass
from swjax.models.config import ModelConfig
from swjax.planning.hlo import read_costs
from swjax.planning.plan import compile_or_refuse, peak_memory


@dataclass(frozen=True)
class StreamingPlan:
    """What one pass of the engine takes of one chip: every row's next word and a part of its next frame.

    Attributes:
        device_kind: the chip.
        rows, size, slots: streams, tokens of each in a pass, and slots of each one's cache.
        weights, cache, temporary, peak, capacity: bytes of memory.
        moved: bytes from and to memory; None where the compiler shows no program text.
        flops: operations of products; attention, which at this size moves more than it computes, is not counted.
        seconds: resource -> least time of a pass.
    """

    device_kind: str
    rows: int
    size: int
    slots: int
    weights: int
    cache: int
    temporary: int
    peak: int
    capacity: float
    moved: float | None
    flops: float | None
    seconds: dict[str, float]

    @property
    def pass_seconds(self) -> float:
        """What the busiest resource takes."""
        return max(self.seconds.values())

    @property
    def spare(self) -> float:
        """Share of the memory that is left."""
        return 1 - self.peak / self.capacity

    def to_json(self) -> dict[str, Any]:
        """All figures, plain."""
        return dataclasses.asdict(self) | {"pass_seconds": self.pass_seconds, "spare": self.spare}


def plan_streaming(
    model: ModelConfig, device: jax.Device, *, rows: int, size: int, slots: int, dtype: str
) -> StreamingPlan:
    """Compile a pass in which every row speaks a word and takes in a part of a frame.

    Args:
        model: its sizes.
        device: one chip of a topology.
        rows: streams.
        size: tokens of a row in one pass.
        slots: of each stream's cache.
        dtype: of weights and cache.

    Raises:
        OutOfMemoryError: if the compiler refuses because the chip's memory is too small.
    """
    chip = chip_of(device.device_kind)
    sharding = SingleDeviceSharding(device)
    width = jnp.dtype(dtype).itemsize
    compiled = compile_or_refuse(
        lower_pass(model, rows=rows, size=size, slots=slots, dtype=jnp.dtype(dtype), sharding=sharding)
    )
    memory: Any = compiled.memory_analysis()
    text = model.text
    cache = 2 * text.num_layers * rows * slots * text.num_kv_heads * text.head_dim * width
    seconds, moved, flops = {}, None, None
    try:
        costs = read_costs(compiled.as_text() or "", axes_of=lambda _: ())
    except jax.errors.JaxRuntimeError:  # the compiler of TPU7x shows no text
        seconds["memory"] = (memory.argument_size_in_bytes) / chip.memory_bandwidth
    else:
        moved, flops = costs.bytes, costs.flops
        seconds = {"compute": flops / chip.flops, "memory": moved / chip.memory_bandwidth}
    return StreamingPlan(
        device_kind=device.device_kind,
        rows=rows,
        size=size,
        slots=slots,
        weights=memory.argument_size_in_bytes - cache,
        cache=cache,
        temporary=memory.temp_size_in_bytes,
        peak=peak_memory(memory),
        capacity=chip.memory,
        moved=moved,
        flops=flops,
        seconds=seconds,
    )
