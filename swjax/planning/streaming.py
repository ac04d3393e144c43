"""Compiles the passes of the streaming engine for a chip that is not at hand, and says what they take."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from swjax.chips import chip_of
from swjax.compiler import STREAMING_OPTIONS
from swjax.inference.place import CACHE, key_head_copies, row_shards, sharding_of
from swjax.inference.programs import lower_encode, lower_pass
from swjax.models.config import ModelConfig
from swjax.plain import Json
from swjax.planning.estimate import Estimate
from swjax.planning.estimate import estimate as estimate_time
from swjax.planning.hlo import read_costs
from swjax.planning.kernels import kernel_blocks
from swjax.planning.plan import compile_or_refuse, peak_memory
from swjax.planning.topology import LOCAL
from swjax.planning.work import spans_of_frame
from swjax.streaming import KeySpans


@dataclass(frozen=True)
class StreamingPlan:
    """What one pass of the engine takes of one chip: every row's next word and a part of its next frame.

    Attributes:
        device_kind: the chip.
        mesh: axes over which the model is divided, with their sizes; empty on one chip.
        rows, size, slots: streams, tokens of each in a pass, and slots of each one's cache, all of which are seen.
        frame_tokens: of a frame of 448 x 448 pixels.
        weights, cache, temporary, peak, capacity: bytes of memory.
        moved: bytes from and to memory; None where the compiler shows no program text.
        flops: operations of products; attention, which at this size moves more than it computes, is not counted.
        seconds: resource -> least time of a pass; how long each message is under way is not counted.
        advancing: the time of a pass by the compiler's own clock; None where it gives no cycles.
        encoding: that of the vision tower on one frame; None likewise.
    """

    device_kind: str
    mesh: Mapping[str, int]
    rows: int
    size: int
    slots: int
    frame_tokens: int
    weights: int
    cache: int
    temporary: int
    peak: int
    capacity: float
    moved: float | None
    flops: float | None
    seconds: dict[str, float]
    advancing: Estimate | None
    encoding: Estimate | None

    @property
    def pass_seconds(self) -> float:
        """The roofline: what the busiest resource takes."""
        return max(self.seconds.values())

    @property
    def word_seconds(self) -> float:
        """From one word to the next: the estimate of a pass, which has no cycles for what is fetched ahead, or the
        roofline where that is more.
        """
        return max(self.pass_seconds, 0.0 if self.advancing is None else self.advancing.seconds)

    @property
    def frames_per_second(self) -> float | None:
        """Frames of all streams together that are encoded and read while every stream speaks a word a pass."""
        if self.encoding is None:
            return None
        passes = self.frame_tokens / (self.size - 1) if self.size > 1 else float("inf")
        return self.rows / (passes * self.word_seconds + self.rows * self.encoding.seconds)

    @property
    def spare(self) -> float:
        """Share of the memory that is left."""
        return 1 - self.peak / self.capacity

    def to_json(self) -> Json:
        """All figures, plain."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("advancing", "encoding"):
            plain[name] = plain[name] and plain[name].to_json()
        return plain | {
            name: getattr(self, name) for name in ("pass_seconds", "word_seconds", "frames_per_second", "spare")
        }


def plan_streaming(
    model: ModelConfig,
    place: jax.Device | Mesh,
    *,
    rows: int,
    size: int,
    slots: int,
    dtype: str,
    topology: str,
) -> StreamingPlan:
    """Compile a pass in which every row speaks a word and takes in a part of a frame, and the encoding of a frame.

    Args:
        model: its sizes.
        place: one chip of a topology, or a mesh of its chips, over which the model is divided.
        rows: streams.
        size: tokens of a row in one pass.
        slots: of each stream's cache.
        dtype: of weights and cache.
        topology: that the place is of; of `LOCAL` there are no estimates.

    Raises:
        ValueError: if the mesh does not divide the model or the rows.
        OutOfMemoryError: if the compiler refuses because the chip's memory is too small.
    """
    on_mesh = isinstance(place, Mesh)
    device: jax.Device = place.devices.flat[0] if isinstance(place, Mesh) else place
    where = place if isinstance(place, Mesh) else SingleDeviceSharding(place)
    chip = chip_of(device.device_kind)
    if rows % row_shards(where):
        raise ValueError(f"{rows} streams are not divided by the mesh's data x fsdp = {row_shards(where)}")
    width = jnp.dtype(dtype).itemsize
    of_frame, side = spans_of_frame(model)
    all_seen = KeySpans(np.zeros(size, np.int32), np.full(size, slots, np.int32))
    decoder = [(all_seen, model.text.num_layers)]
    text = model.text
    key_heads = text.num_kv_heads * key_head_copies(where, model)
    of_chips = dataclasses.replace(model, text=dataclasses.replace(text, num_kv_heads=key_heads))

    def compiled_and_timed(
        lowered: jax.stages.Lowered, vision: Sequence[tuple[KeySpans, int]]
    ) -> tuple[jax.stages.Compiled, Estimate | None]:
        compiled = compile_or_refuse(lowered)
        if topology == LOCAL or chip.clock is None:
            return compiled, None
        program = compiled.as_text() or ""
        blocks = kernel_blocks(program, topology, STREAMING_OPTIONS.get("tpu", {}))
        return compiled, estimate_time(
            program, blocks, chip=chip, model=of_chips, decoder=decoder, vision=vision, slots=slots
        )

    _, encoding = compiled_and_timed(lower_encode(model, side=side, dtype=jnp.dtype(dtype), where=where), of_frame)
    compiled, advancing = compiled_and_timed(
        lower_pass(model, rows=rows, size=size, slots=slots, dtype=jnp.dtype(dtype), where=where), of_frame
    )
    memory: Any = compiled.memory_analysis()
    shape = (text.num_layers, rows, key_heads, slots, text.head_dim)
    divided = sharding_of(where, CACHE, shape)
    cache = 2 * math.prod(shape if divided is None else divided.shard_shape(shape)) * width
    seconds, moved, flops = {}, None, None
    try:
        costs = read_costs(compiled.as_text() or "", axes_of=lambda _: ())
    except jax.errors.JaxRuntimeError:  # the compiler of TPU7x shows no text
        seconds["memory"] = (memory.argument_size_in_bytes) / chip.memory_bandwidth
    else:
        moved, flops = costs.bytes, costs.flops
        seconds = {"compute": flops / chip.flops, "memory": moved / chip.memory_bandwidth}
        if on_mesh:
            seconds["links"] = sum(costs.sent.values()) / chip.link_bandwidth
    return StreamingPlan(
        device_kind=device.device_kind,
        mesh={axis: size for axis, size in place.shape.items() if size > 1} if isinstance(place, Mesh) else {},
        rows=rows,
        size=size,
        slots=slots,
        frame_tokens=side * side // model.vision.spatial_merge_size**2,
        weights=memory.argument_size_in_bytes - cache,
        cache=cache,
        temporary=memory.temp_size_in_bytes,
        peak=peak_memory(memory),
        capacity=chip.memory,
        moved=moved,
        flops=flops,
        seconds=seconds,
        advancing=advancing,
        encoding=encoding,
    )
