"""The time of a compiled program by the cycles that the TPU compiler gives its operations.

The compiler writes an estimate of cycles beside every fusion, product, copy and broadcast. A walk through the program
in the order of its schedule, loops as often as they run, adds them up. Products take no less than their operations do
at the peak rate, which a few of the compiler's estimates pass over. Kernels have none; the caller knows theirs. What
is sent goes over one link, transfer after transfer: between a `-start` and its `-done` operations hide it, those that
carry it on among them, and the rest is waited for.
"""

import collections
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from swjax.planning.hlo import (
    BEGINS,
    COLLECTIVES,
    ENDS,
    Instruction,
    called_by,
    channel_within,
    first_group,
    is_kernel,
    parse,
    product_flops,
    sent_bytes,
)

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_MACHINERY = re.compile(r"jit\(.*|while|body|closed_call|checkpoint|rematted_computation|shard_map|cond|branch_\d+_fun")
"""Parts of a path that say how JAX made an operation, and not what it is."""
_UNTIMED = frozenset(["scatter", "sort"])
"""What may take long and has no cycles."""

# What an operation is that computes nothing, by the operations of which it is made.
_MOVING = frozenset(["parameter", "bitcast", "reshape", "tuple", "get-tuple-element", "slice", "dynamic-slice"])
_WASTE = {
    "copies": frozenset(["copy"]),
    "transposes": frozenset(["transpose", "copy", "pad", "concatenate"]),
    "converts": frozenset(["convert", "copy"]),
    "fills": frozenset(["broadcast", "constant", "iota"]),
}


@dataclass(frozen=True)
class Operation:
    """One operation of the schedule, all of its runs together.

    Attributes:
        name: the compiler's.
        kind: of HLO, such as fusion or copy; `kernel` for a kernel of Pallas.
        source: file and line of the program that it comes from, or "".
        path: scopes of the program that it comes from, as JAX names them.
        runs: how often it runs.
        seconds: of all runs.
        waste: copies, transposes, converts or fills, if it is nothing else; otherwise "".
    """

    name: str
    kind: str
    source: str
    path: str
    runs: float
    seconds: float
    waste: str = ""


@dataclass
class Schedule:
    """The time of a program on one chip, in seconds.

    Attributes:
        operations: that take time, in the order of the program; those of which the compiler tells no cycles take none.
        sent: that transfers take, hidden or not.
        exposed: of `sent`, what no operation hides.
        unknown_loops: loops whose number of turns could not be read; counted once.
    """

    operations: list[Operation] = field(default_factory=list)
    sent: float = 0.0
    exposed: float = 0.0
    unknown_loops: int = 0

    @property
    def seconds(self) -> float:
        """The program's time: its operations, and what is waited for."""
        return sum(operation.seconds for operation in self.operations) + self.exposed

    def most_expensive(self, count: int = 20) -> list[Operation]:
        """The operations that take longest, those of one kind, source line and path added up, named as the longest."""
        merged: dict[tuple[str, ...], list[Operation]] = collections.defaultdict(list)
        for one in self.operations:
            if not one.seconds:
                continue
            merged[one.kind, one.source, one.path, one.waste].append(one)
        sums = [
            replace(
                max(same, key=lambda one: one.seconds),
                runs=sum(one.runs for one in same),
                seconds=sum(one.seconds for one in same),
            )
            for same in merged.values()
        ]
        return sorted(sums, key=lambda one: -one.seconds)[:count]

    def untimed(self) -> list[Operation]:
        """Scatters and sorts of which the compiler tells no cycles, so that their time is not in the sum."""
        return [operation for operation in self.operations if not operation.seconds]

    def waste(self) -> dict[str, float]:
        """Kind of operation that computes nothing -> its seconds."""
        found = dict.fromkeys(_WASTE, 0.0)
        for operation in self.operations:
            if operation.waste:
                found[operation.waste] += operation.seconds
        return found


def read_schedule(
    text: str,
    *,
    clock: float,
    peak_flops: float,
    link_bandwidth: float,
    kernel_cycles: Callable[[Instruction], float],
) -> Schedule:
    """Walks through a compiled program.

    Args:
        text: `compiled.as_text()`, of one partition, as the TPU compiler writes it.
        clock: cycles a second.
        peak_flops: operations of products a second, at most.
        link_bandwidth: bytes a second that a chip sends.
        kernel_cycles: a call of a Pallas kernel -> cycles of one run.
    """
    computations, entry = parse(text)
    walk = _Walk(computations, _source_lines(text), clock, peak_flops, link_bandwidth, kernel_cycles)
    schedule = Schedule()
    walk.visit(entry, 1.0, schedule)
    return schedule


@dataclass(frozen=True)
class _Walk:
    computations: Mapping[str, dict[str, Instruction]]
    sources: Mapping[int, str]
    clock: float
    peak_flops: float
    link_bandwidth: float
    kernel_cycles: Callable[[Instruction], float]

    def visit(self, name: str, times: float, schedule: Schedule) -> float:
        """Adds `times` runs of a computation; returns the seconds of one."""
        now, free, arriving = 0.0, 0.0, dict[str, float]()  # when the link is free, and when what was begun is there
        body = self.computations[name]
        for instruction in body.values():
            transfer = self._transfer_seconds(instruction, body)
            if transfer is not None:
                free = max(free, now) + transfer
                schedule.sent += times * transfer
                begun = self._channel(instruction, BEGINS)
                arriving[begun or instruction.name] = free
                if begun or instruction.kind.endswith("-start"):
                    continue
            awaited = instruction.name if transfer is not None else self._awaited(instruction, arriving)
            if awaited:
                waited = max(arriving.pop(awaited) - now, 0.0)
                schedule.exposed += times * waited
                now += waited
            own = self._own_seconds(instruction, body)
            if own or self._is_untimed(instruction):
                schedule.operations.append(self._operation(instruction, times, own))
                now += own
            for called, turns, is_top_level in called_by(instruction, self.computations):
                if is_top_level:
                    schedule.unknown_loops += turns is None
                    now += (turns or 1) * self.visit(called, times * (turns or 1), schedule)
        return now

    def _own_seconds(self, instruction: Instruction, body: Mapping[str, Instruction]) -> float:
        if is_kernel(instruction):
            return self.kernel_cycles(instruction) / self.clock
        found = _CYCLES.search(instruction.rest)
        # Copies with a start and an end are made by the memory's own engines beside what runs.
        is_beside = instruction.kind.endswith(("-start", "-done"))
        if not found or is_beside:
            return 0.0
        return max(int(found.group(1)) / self.clock, self._flops(instruction, body) / self.peak_flops)

    def _flops(self, instruction: Instruction, body: Mapping[str, Instruction]) -> float:
        """Operations of the products in it."""
        if instruction.kind in ("dot", "convolution"):
            return product_flops(instruction, [body[operand].shapes[0] for operand in instruction.operands[:2]])
        if instruction.kind != "fusion":
            return 0.0
        called = [self.computations[name] for name, _, _ in called_by(instruction, self.computations)]
        return sum(self._flops(one, inside) for inside in called for one in inside.values())

    def _transfer_seconds(self, instruction: Instruction, body: Mapping[str, Instruction]) -> float | None:
        """Of a collective that begins here, alone or inside of a fusion; None for anything else."""
        if instruction.kind.endswith("-done"):
            return None
        if instruction.kind.removesuffix("-start") in COLLECTIVES:
            group = first_group(instruction.rest)
            kind = instruction.kind.removesuffix("-start")
            return sent_bytes(kind, instruction, body, len(group)) / self.link_bandwidth
        if instruction.kind in ("fusion", "async-start", "call-start"):
            inside = [
                self._transfer_seconds(one, self.computations[called])
                for called, _, _ in called_by(instruction, self.computations)
                for one in self.computations[called].values()
            ]
            found = [seconds for seconds in inside if seconds is not None]
            return sum(found) if found else None
        return None

    def _channel(self, instruction: Instruction, target: str) -> str:
        """Of a fusion in which a collective begins or ends; "" for anything else."""
        if instruction.kind != "fusion":
            return ""
        found = (
            channel_within(self.computations[one], target) for one, _, _ in called_by(instruction, self.computations)
        )
        return next((channel for channel in found if channel), "")

    def _awaited(self, instruction: Instruction, arriving: Mapping[str, float]) -> str:
        if (ended := self._channel(instruction, ENDS)) in arriving:
            return ended
        if not instruction.kind.endswith("-done"):
            return ""
        return next((operand for operand in instruction.operands if operand in arriving), "")

    def _operation(self, instruction: Instruction, times: float, seconds: float) -> Operation:
        frame, path = _FRAME.search(instruction.rest), _OP_NAME.search(instruction.rest)
        return Operation(
            name=instruction.name,
            kind="kernel" if is_kernel(instruction) else instruction.kind,
            source=self.sources.get(int(frame.group(1)), "") if frame else "",
            path="/".join(part for part in path.group(1).split("/") if not _MACHINERY.fullmatch(part)) if path else "",
            runs=times,
            seconds=times * seconds,
            waste=self._waste(instruction),
        )

    def _made_of(self, instruction: Instruction) -> list[Instruction]:
        if instruction.kind != "fusion":
            return [instruction]
        called = [name for name, _, _ in called_by(instruction, self.computations)]
        return [one for name in called for one in self.computations[name].values()]

    def _is_untimed(self, instruction: Instruction) -> bool:
        """Whether it is, or is a fusion that holds, what may take long and has no cycles."""
        if instruction.kind == "fusion":
            return any(self._is_untimed(one) for one in self._made_of(instruction))
        return instruction.kind in _UNTIMED

    def _waste(self, instruction: Instruction) -> str:
        worked = {one.kind for one in self._made_of(instruction)} - _MOVING
        if worked <= {"constant"}:
            return ""
        return next((waste for waste, of in _WASTE.items() if worked <= of), "")


def _source_lines(text: str) -> dict[int, str]:
    """Number of a stack frame -> `file:line` of its innermost frame in this package, or of its innermost one."""
    tables: dict[str, dict[int, str]] = collections.defaultdict(dict)
    section = ""
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            section = line
        elif line.startswith(("%", "ENTRY")):
            break
        elif section and (found := re.match(r"(\d+) (.*)", line)):
            tables[section][int(found.group(1))] = found.group(2)
    places: dict[int, str] = {}
    for number, location in tables["FileLocations"].items():
        values = _fields(location)
        file = tables["FileNames"].get(values["file_name_id"], "").strip('"')
        places[number] = (
            f"{(file.partition('/swjax/')[2] and 'swjax/' + file.rpartition('/swjax/')[2]) or file}:{values['line']}"
        )
    frames = {number: _fields(frame) for number, frame in tables["StackFrames"].items()}
    return {number: _innermost(number, frames, places) for number in frames}


def _innermost(number: int, frames: Mapping[int, Mapping[str, int]], places: Mapping[int, str]) -> str:
    at = number
    while at in frames:
        place = places.get(frames[at]["file_location_id"], "")
        if place.startswith("swjax/"):
            return place
        at = frames[at].get("parent_frame_id", 1) - 1  # the text counts from the frame that is none
    return places.get(frames[number]["file_location_id"], "")


def _fields(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", text)}
