"""Compiles a run's training step for chips that are not at hand, and says what it takes of each."""

import dataclasses
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from swjax.chips import Chip, chip_of
from swjax.compiler import TRAINING_OPTIONS
from swjax.mesh import AXES
from swjax.models.config import ModelConfig
from swjax.plain import Json
from swjax.planning.estimate import Estimate
from swjax.planning.estimate import estimate as estimate_time
from swjax.planning.hlo import BETWEEN_SLICES, Costs, read_costs
from swjax.planning.kept import REFUSED, keep, kept_file, read_kept
from swjax.planning.kernels import kernel_blocks
from swjax.planning.topology import LOCAL, PlanError
from swjax.planning.work import full_rows, kernel_flops, spans_of_layers
from swjax.training.flops import Rows, model_flops
from swjax.training.program import Program, batch_shapes, fit_rows, make_program
from swjax.training.sections import Config

SPARE_MEMORY = 0.10
"""Share of a chip's memory that a plan should leave: other programs and fragments of memory take some."""


class OutOfMemoryError(PlanError):
    """The compiler finds that the step does not fit a chip."""


@dataclass(frozen=True)
class Plan:
    """What a training step takes of each chip. Bytes and operations are a chip's, seconds the step's.

    Attributes:
        topology: what it was compiled for.
        device_kind, num_devices: the chips.
        mesh: size of each axis.
        remat: policy.
        rows: of one micro-batch; `accumulation` of them make a step.
        parameters, optimizer, batch, temporary, peak, capacity: bytes of memory; the peak is less than the sum of the
            others where temporary arrays take the place of arguments that are given away.
        flops: operations of products and of attention; None where the compiler shows no program text.
        moved: bytes from and to memory; None likewise.
        sent: mesh axes -> bytes sent in collectives over them, "slices" -> to other slices; None likewise.
        needed_flops: by part of the model, operations that any implementation needs, over all chips.
        seconds: resource -> least time that it takes; the step takes at least the longest.
        largest: the largest array of the program.
        estimate: the time by the compiler's own clock (`swjax.planning.estimate`); None where it gives no cycles.
        compile_seconds: time that the compiler took.
    """

    topology: str
    device_kind: str
    num_devices: int
    mesh: Mapping[str, int]
    remat: str
    accumulation: int
    rows: Rows
    parameters: int
    optimizer: int
    batch: int
    temporary: int
    peak: int
    capacity: float
    flops: float | None
    moved: float | None
    sent: Mapping[str, float] | None
    needed_flops: Mapping[str, float]
    seconds: Mapping[str, float]
    largest: str
    estimate: Estimate | None
    compile_seconds: float

    @property
    def step_seconds(self) -> float:
        """The roofline: what the busiest resource takes, all others going on beside it."""
        return max(self.seconds.values())

    @property
    def limit(self) -> str:
        """The busiest resource."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def mfu(self) -> float:
        """Model FLOP utilisation at the roofline: needed operations over what all chips could do in the time."""
        peak = chip_of(self.device_kind).flops
        return sum(self.needed_flops.values()) / (self.step_seconds * self.num_devices * peak)

    @property
    def spare(self) -> float:
        """Share of the memory that is left; below zero if it does not fit."""
        return 1 - self.peak / self.capacity

    @property
    def expected_seconds(self) -> float:
        """The estimate, which has no cycles for what is fetched ahead, or the roofline where that is more."""
        return max(self.step_seconds, 0.0 if self.estimate is None else self.estimate.seconds)

    @property
    def tokens_per_second(self) -> float:
        """Tokens that all chips train on, by the estimate where there is one."""
        return self.accumulation * self.rows.count * self.rows.tokens / self.expected_seconds

    def days(self, video_hours: float) -> float:
        """Days for one pass over so many hours of video."""
        seconds_a_step = self.accumulation * self.rows.count * self.rows.seconds
        return video_hours * 3600 / seconds_a_step * self.expected_seconds / 86400

    @property
    def estimated_mfu(self) -> float | None:
        """Model FLOP utilisation at the estimate."""
        return None if self.estimate is None else self.mfu * self.step_seconds / self.estimate.seconds

    def to_json(self) -> Json:
        """All figures, plain."""
        derived = {name: getattr(self, name) for name in ("step_seconds", "limit", "mfu", "spare", "tokens_per_second")}
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain |= {"rows": dataclasses.asdict(self.rows), "estimate": None} | derived
        estimate = {} if self.estimate is None else self.estimate.to_json() | {"estimated_mfu": self.estimated_mfu}
        return plain | {"roofline_seconds": self.step_seconds, "peak_bytes": self.peak} | estimate


def make_plan(
    config: Config,
    model: ModelConfig,
    topology: str,
    devices: Sequence[jax.Device],
    *,
    slices: int = 1,
) -> Plan:
    """Compile the training step of a configuration and read off what it takes.

    Args:
        config: the run's.
        model: the model's sizes.
        topology: its name; of `LOCAL` there is no estimate.
        devices: its devices.
        slices: as `open_topology` was told.

    Raises:
        ConfigError: if the mesh or the batch do not fit the devices.
        OutOfMemoryError: if the compiler refuses because a chip's memory is too small.
        StorageError: the folder of what was planned before belongs to another user (`swjax.planning.kept`).
    """
    chip = chip_of(devices[0].device_kind)
    config = fit_rows(config, devices=devices)
    tokens, patches = config.data.max_tokens, config.data.max_patches
    program = make_program(config, model, devices=devices)
    batch = batch_shapes((config.accumulation, config.batch_size), config.data, model, program, dtype=config.dtype)
    began = time.monotonic()
    lowered = program.train_step.lower(program.shapes, batch)  # type: ignore[attr-defined]
    file = kept_file(lowered, topology, slices, [str(device) for device in devices], config, model)
    if (kept := read_kept(file)) is not None:
        if REFUSED in kept:
            raise OutOfMemoryError(kept[REFUSED])
        return Plan(**kept | {"rows": Rows(**kept["rows"])})
    try:
        compiled = compile_or_refuse(lowered)
    except OutOfMemoryError as error:
        keep(file, {REFUSED: str(error)})
        raise
    estimate = None
    if topology != LOCAL and chip.clock is not None:  # the compiler tells cycles of some chips
        decoder, vision = spans_of_layers(
            model, tokens=tokens, patches=patches, wait_k=config.wait_k, variant=config.variant
        )
        text = compiled.as_text() or ""
        blocks = kernel_blocks(text, topology, TRAINING_OPTIONS["tpu"])
        estimate = estimate_time(text, blocks, chip=chip, model=model, decoder=decoder, vision=vision)
    compile_seconds = time.monotonic() - began
    rows = full_rows(
        model,
        count=config.batch_size,
        tokens=tokens,
        patches=patches,
        wait_k=config.wait_k,
        variant=config.variant,
    )
    parameters = program.shapes.trainable | program.shapes.frozen
    needed = model_flops(model, rows, parameters, program.shapes.trainable)
    needed = {part: config.accumulation * flops for part, flops in needed.items()}
    costs = _costs(compiled, program)
    flops = None if costs is None else costs.flops + _in_kernels(costs, model, rows, program.mesh.size)
    memory: Any = compiled.memory_analysis()
    plan = Plan(
        topology=topology if slices == 1 else f"{slices} x {topology}",
        device_kind=devices[0].device_kind,
        num_devices=len(devices),
        mesh=dict(program.mesh.shape),
        remat=config.remat,
        accumulation=config.accumulation,
        rows=rows,
        parameters=_bytes_a_chip((program.shapes.trainable, program.shapes.frozen)),
        optimizer=_bytes_a_chip(program.shapes.opt_state),
        batch=_bytes_a_chip(batch),
        temporary=memory.temp_size_in_bytes,
        peak=peak_memory(memory),
        capacity=chip.memory,
        flops=flops,
        moved=None if costs is None else costs.bytes,
        sent=None if costs is None else {" x ".join(axes) or "none": sent for axes, sent in costs.sent.items()},
        needed_flops=needed,
        seconds=_seconds(chip, costs, flops, sum(needed.values()) / len(devices)),
        largest="" if costs is None else f"{costs.largest.dtype}{list(costs.largest.dims)}",
        estimate=estimate,
        compile_seconds=compile_seconds,
    )
    keep(file, plan)
    return plan


def candidates(config: Config, model: ModelConfig, num_devices: int, *, slices: int = 1) -> Iterator[Config]:
    """Configurations that train the same step, those that promise most first: meshes, batch shapes, remat policies.

    A step has as many rows in all of them, `batch_size` x `accumulation`. As many as the configuration gives each chip
    run at once on each chip, or on the chips that a row is cut over; or twice as many, or half.

    Args:
        config: the run's.
        model: the model's sizes.
        num_devices: chips.
        slices: that they are of.
    """
    rows = (config.batch_size or 1) * config.accumulation
    of_chip = max(1, config.batch_size // num_devices)
    for context, tensor in ((1, 1), (2, 1), (1, 2), (4, 1), (1, 4), (2, 2), (1, 8)):
        for data in (slices, 2 * slices, 4 * slices):
            fsdp, left = divmod(num_devices, context * tensor * data)
            if left or model.text.num_kv_heads % tensor or model.text.hidden_size % (fsdp * context):
                continue
            mesh = dataclasses.replace(config.mesh, data=data, fsdp=fsdp, context=context, tensor=tensor)
            for at_once in dict.fromkeys((of_chip, 2 * of_chip, max(1, of_chip // 2))):
                accumulation, left = divmod(rows, at_once * data * fsdp)
                if left:
                    continue
                for remat in ("minimal", "attention", "full"):
                    yield dataclasses.replace(
                        config,
                        mesh=mesh,
                        batch_size=at_once * data * fsdp,
                        accumulation=accumulation,
                        remat=remat,
                    )


def best(plans: Sequence[Plan]) -> Plan | None:
    """The plan that trains most tokens a second and leaves `SPARE_MEMORY`; None if none does."""
    fitting = [plan for plan in plans if plan.spare >= SPARE_MEMORY]
    return max(fitting, key=lambda plan: plan.tokens_per_second, default=None)


def peak_memory(memory: Any) -> int:
    """Bytes of a chip that a program takes at its fullest, as far as the compiler tells: at least these.

    They are the most that it finds alive at a time, or all of its temporary arrays beside what is not given away, if
    that is more. The sum of arguments and temporary arrays would be too much: the compiler takes programs with which
    it is more than a chip has.

    Args:
        memory: `compiled.memory_analysis()`.
    """
    kept = memory.argument_size_in_bytes - memory.alias_size_in_bytes
    return max(memory.peak_memory_in_bytes, kept + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes)


def compile_or_refuse(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile a program.

    Raises:
        OutOfMemoryError: if the compiler refuses because a chip's memory is too small.
    """
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used ([\d.]+\w) of ([\d.]+\w)", str(error))
        amount = f": it needs {used.group(1)} of {used.group(2)}" if used else ""
        raise OutOfMemoryError(
            f"the program does not fit a chip{amount}; shard over more chips, choose another remat policy, or make "
            "rows shorter or fewer"
        ) from error


def _costs(compiled: jax.stages.Compiled, program: Program) -> Costs | None:
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return None  # the compiler of TPU7x does not give it
    if not text:
        return None
    shape = tuple(program.mesh.shape[axis] for axis in AXES)

    def axes_of(devices: Sequence[int]) -> tuple[str, ...]:
        places = np.stack(np.unravel_index(devices, shape), axis=-1)
        return tuple(axis for axis, values in zip(AXES, places.T, strict=True) if len(set(values.tolist())) > 1)

    return read_costs(text, axes_of=axes_of)


def _in_kernels(costs: Costs, model: ModelConfig, rows: Rows, num_devices: int) -> float:
    """Operations of attention kernels on one chip; the work is divided evenly over all."""
    of_all = sum(times * kernel_flops(model, rows, name, source) for (name, source), times in costs.kernels.items())
    return of_all / num_devices


def _seconds(chip: Chip, costs: Costs | None, flops: float | None, needed_a_chip: float) -> dict[str, float]:
    if costs is None or flops is None:
        return {"compute": needed_a_chip / chip.flops}
    between = costs.sent.get((BETWEEN_SLICES,), 0.0)
    seconds = {
        "compute": flops / chip.flops,
        "memory": costs.bytes / chip.memory_bandwidth,
        "links": (sum(costs.sent.values()) - between) / chip.link_bandwidth,
    }
    if between:
        if chip.network_bandwidth is None:
            raise PlanError("nothing is known of the network between slices of these chips; plan one slice")
        seconds["network"] = between / chip.network_bandwidth
    return seconds


def _bytes_a_chip(shapes: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)
    )
