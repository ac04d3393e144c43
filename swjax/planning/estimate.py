"""A compiled program's time by the compiler's own clock: cycles, the bundles of our kernels, and what is sent."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from swjax.attention.tpu_work import KEY_GRADIENTS, kernel_work
from swjax.chips import Chip
from swjax.models.config import ModelConfig
from swjax.plain import Json
from swjax.planning.bundles import Block
from swjax.planning.clock import Schedule, read_schedule
from swjax.planning.hlo import Instruction, operand_shapes
from swjax.streaming import KeySpans

_REGISTER = 128
"""Lanes of a register: narrower heads take a whole one."""


class EstimateError(ValueError):
    """A program holds what nothing is known of; the message says what."""


@dataclass(frozen=True)
class KernelEstimate:
    """A kernel of span attention, as the compiler schedules it.

    Attributes:
        bundles: of a tile of keys that all rows see whole.
        masked_bundles: of one that some do not.
        pairs_a_bundle: pairs of query and key of one head in a whole tile, over its bundles.
        matrix: share of the matrix units' slots that is filled in a whole tile.
        calls: in a run of the program.
        seconds: of all calls.
    """

    bundles: int
    masked_bundles: int
    pairs_a_bundle: float
    matrix: float
    calls: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """A program's time by the compiler's clock.

    Attributes:
        schedule: its operations and what is sent.
        kernels: by the compiler's name.
    """

    schedule: Schedule
    kernels: Mapping[str, KernelEstimate]

    @property
    def seconds(self) -> float:
        """Of one run of the program."""
        return self.schedule.seconds

    def to_json(self) -> Json:
        """All figures, plain."""
        return {
            "estimated_seconds": self.seconds,
            "sent_seconds": self.schedule.sent,
            "exposed_seconds": self.schedule.exposed,
            "unknown_loops": self.schedule.unknown_loops,
            "waste": self.schedule.waste(),
            "untimed": [vars(one) for one in self.schedule.untimed()],
            "operations": [vars(one) for one in self.schedule.most_expensive()],
            "kernels": {name: vars(kernel) for name, kernel in self.kernels.items()},
        }


def estimate(
    text: str,
    blocks: Mapping[str, Sequence[Block]],
    *,
    chip: Chip,
    model: ModelConfig,
    decoder: Sequence[tuple[KeySpans, int]],
    vision: Sequence[tuple[KeySpans, int]],
    slots: int | None = None,
) -> Estimate:
    """Adds up the time of one run on one chip.

    A kernel takes its tiles of keys, each as many cycles as it has bundles or as its products take on the matrix units,
    whichever is more, and what begins and ends a block of rows. Forward, it takes no less than fetching its tiles does;
    otherwise fetching is taken to be hidden.

    Args:
        text: `compiled.as_text()`.
        blocks: of each kernel's bundles, by its name in the program (`swjax.planning.kernels`).
        chip: with a clock.
        model: sizes.
        decoder, vision: spans of a full row, each with the number of layers that have them, from `spans_of_layers`.
        slots: of the cache that the decoder attends to; None where it attends to the row itself.

    Raises:
        EstimateError: nothing is known of the chip's cycles, or a kernel has no product.
        ValueError: the program has a kernel that is none of ours.
    """
    if chip.clock is None:
        raise EstimateError("nothing is known of the cycles of this chip")
    cycles: dict[str, tuple[float, KernelEstimate]] = {}

    def kernel_cycles(call: Instruction) -> float:
        if call.name not in cycles:
            cycles[call.name] = _kernel(call, blocks[call.name], chip, model, decoder, vision, slots)
        return cycles[call.name][0]

    schedule = read_schedule(
        text,
        clock=chip.clock,
        peak_flops=chip.flops,
        link_bandwidth=chip.link_bandwidth,
        kernel_cycles=kernel_cycles,
    )
    kernels: dict[str, KernelEstimate] = {}
    named: dict[KernelEstimate, str] = {}  # layers that are no loop have the same kernel each, by names of their own
    for operation in schedule.operations:
        if operation.kind == "kernel":
            known = cycles[operation.name][1]
            name = named.setdefault(known, operation.name)
            before = kernels.get(name, replace(known, calls=0, seconds=0.0))
            calls, seconds = before.calls + operation.runs, before.seconds + operation.seconds
            kernels[name] = replace(known, calls=calls, seconds=seconds)
    return Estimate(schedule, kernels)


def _kernel(
    call: Instruction,
    blocks: Sequence[Block],
    chip: Chip,
    model: ModelConfig,
    decoder: Sequence[tuple[KeySpans, int]],
    vision: Sequence[tuple[KeySpans, int]],
    slots: int | None,
) -> tuple[float, KernelEstimate]:
    """Cycles of one call on one chip, and what is known of the kernel; `calls` and `seconds` are left at zero."""
    is_vision = re.search(r'op_name="[^"]*vision', call.rest) is not None
    part, layers = (model.vision, vision) if is_vision else (model.text, decoder)
    key_heads = part.num_heads if is_vision else model.text.num_kv_heads
    group = part.num_heads // key_heads
    # Of a chip: batch, heads and rows of the output or, for keys, batch and heads alone.
    dims = next(shape.dims for shape in (*call.shapes, *operand_shapes(call)) if len(shape.dims) in (4, 5))
    work = kernel_work(
        call.name,
        layers,
        group=group,
        head_dim=part.head_dim,
        num_keys=len(layers[0][0].start) if is_vision or slots is None else slots,
    )
    # All of a row's blocks are on one chip, or as many as the context axis leaves there.
    by_keys = call.name.startswith(KEY_GRADIENTS)
    share = 1.0 if by_keys else min(math.prod(dims[2:-1]) / (work.row_blocks * work.rows), 1.0)
    heads = dims[0] * dims[1] * share
    tile_blocks, others = _tile_blocks(call.name, blocks)
    width = -(-part.head_dim // _REGISTER) * _REGISTER
    in_units = work.products * work.tile * work.rows * width / (chip.multiply_adds or 1)
    cycles = float(heads) * (
        work.whole * max(tile_blocks[0].bundles, in_units)
        + work.masked * max(tile_blocks[-1].bundles, in_units)
        + work.row_blocks * others
    )
    if work.products == 2:  # with few queries, fetching keys and values takes longer than all that is done with them
        fetched = 2 * float(heads) * (work.whole + work.masked) * work.tile * width * work.itemsize
        cycles = max(cycles, fetched / chip.memory_bandwidth * (chip.clock or 0.0) * chip.cores)
    return cycles / chip.cores, KernelEstimate(
        bundles=tile_blocks[0].bundles,
        masked_bundles=tile_blocks[-1].bundles,
        pairs_a_bundle=work.pairs / max(tile_blocks[0].bundles, in_units),
        matrix=tile_blocks[0].matrix,
        calls=0.0,
        seconds=0.0,
    )


def _tile_blocks(name: str, blocks: Sequence[Block]) -> tuple[list[Block], int]:
    """The bundles of a whole and of a masked tile, and how many others stand in the loop over the grid."""
    found = [block for block in blocks if block.matrix > 0]
    if not found:
        raise EstimateError(f"the bundles of {name} have no product in them")
    deepest = max(block.depth for block in found)
    others = sum(block.bundles for block in blocks if 0 < block.depth < deepest)
    return [block for block in found if block.depth == deepest], others
