"""Reads a compiled program: what one device computes, moves and sends, with loops counted as often as they run.

The compiler's own cost analysis counts the body of a loop once, so of 28 scanned layers it sees one.
"""

import collections
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1, "s4": 1, "u4": 1, "c64": 8}
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](\{[^{}]*\})?")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
KERNEL_TARGET = "tpu_custom_call"
"""What a kernel of Pallas calls."""
BEGINS, ENDS = "AsyncCollectiveStart", "AsyncCollectiveDone"
"""Calls in the first and the last of the fusions among which a TPU's compiler divides a collective."""

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
BETWEEN_SLICES = "slices"
"""Stands in the place of mesh axes for what is sent over the network that joins slices."""

_MOVE_NOTHING = frozenset(
    [
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "while",
        "conditional",
        "call",
        "after-all",
        "partition-id",
        "opt-barrier",
    ]
)


@dataclass(frozen=True)
class Shape:
    """An array of a program.

    Attributes:
        dtype: such as bf16.
        dims: its sizes.
        in_memory: whether it lies in high-bandwidth memory, not on the chip.
    """

    dtype: str
    dims: tuple[int, ...]
    in_memory: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.dims) * _BYTES.get(self.dtype, 0)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation: its name, results, kind, operands by name, and the rest of the line."""

    name: str
    shapes: tuple[Shape, ...]
    kind: str
    operands: tuple[str, ...]
    rest: str


@dataclass
class Costs:
    """What one device does in one run of a program.

    Attributes:
        flops: multiplications and additions of matrix products and convolutions.
        bytes: moved from and to memory by top-level operations.
        sent: mesh axes -> bytes that a device sends in collectives over them, by the best ring algorithms;
            `(BETWEEN_SLICES,)` -> bytes that it sends to other slices.
        kernels: name and source of each kernel that the compiler cannot see into -> how often it runs.
        largest: the largest array.
        unknown_loops: loops whose number of turns could not be read; counted once.
    """

    flops: float = 0.0
    bytes: float = 0.0
    sent: dict[tuple[str, ...], float] = field(default_factory=lambda: collections.defaultdict(float))
    kernels: dict[tuple[str, str], float] = field(default_factory=lambda: collections.defaultdict(float))
    largest: Shape = Shape("pred", (), False)
    unknown_loops: int = 0


def read_costs(text: str, *, axes_of: Callable[[Sequence[int]], tuple[str, ...]]) -> Costs:
    """Adds up the costs of a program.

    Args:
        text: `compiled.as_text()`, of one partition.
        axes_of: devices that send to one another -> names of the mesh axes along which they lie.
    """
    computations, entry = parse(text)
    costs = Costs()
    _visit(computations, entry, 1.0, True, axes_of, costs)
    return costs


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """The computations of a program by name, and the name of the first to run."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if line.endswith("{") and line.startswith(("%", "ENTRY")):
            current = line.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
            computations[current] = {}
            entry = current if line.startswith("ENTRY") else entry
        elif current and " = " in line:
            instruction = _instruction(line)
            computations[current][instruction.name] = instruction
        elif line.startswith("}"):
            current = ""
    if not entry:
        raise ValueError("the text is not that of a compiled program: it has no ENTRY")
    _count_once(computations)
    return computations, entry


def channel_within(body: Mapping[str, Instruction], target: str) -> str:
    """The channel of the collective that begins or ends in a fused computation; "" if none does.

    Args:
        body: the computation.
        target: `BEGINS` or `ENDS`.
    """
    if not any(f'custom_call_target="{target}"' in one.rest for one in body.values()):
        return ""
    return next((found.group(1) for one in body.values() if (found := _CHANNEL.search(one.rest))), "")


def _count_once(computations: dict[str, dict[str, Instruction]]) -> None:
    """Where a collective goes on beside products it stands in a fusion for each: all but the first become its ends."""
    begun = {channel: name for name, body in computations.items() if (channel := channel_within(body, BEGINS))}
    for name, body in computations.items():
        for one in body.values() if begun else ():
            found = _CHANNEL.search(one.rest) if one.kind in COLLECTIVES else None
            if found and found.group(1) in begun:
                part = "start" if begun[found.group(1)] == name else "done"
                body[one.name] = replace(one, kind=f"{one.kind}-{part}")


def product_flops(instruction: Instruction, shapes: Sequence[Shape]) -> float:
    """Multiplications and additions of a `dot` or a `convolution`, which is what a TPU makes of products of matrices.

    Args:
        instruction: the operation.
        shapes: of its two operands.
    """
    (out,) = instruction.shapes
    left, right = shapes
    if instruction.kind == "dot":
        contracted = _numbers(instruction.rest, "lhs_contracting_dims")
        return 2.0 * math.prod(out.dims) * math.prod(left.dims[axis] for axis in contracted)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    if labels is None:
        raise ValueError(f"a convolution without labels of its axes: {instruction.rest[:200]}")
    of_left, of_right, of_out = labels.groups()
    products = out.dims[of_out.index("b")] * out.dims[of_out.index("f")] * right.dims[of_right.index("i")]
    spatial = sorted(letter for letter in of_out if letter.isdigit())
    window = _window(instruction.rest, len(spatial))
    for number, letter in enumerate(spatial):
        products *= _pairs_in_window(
            left.dims[of_left.index(letter)],
            right.dims[of_right.index(letter)],
            out.dims[of_out.index(letter)],
            *(window[name][number] for name in ("stride", "pad", "lhs_dilate", "rhs_dilate")),
        )
    batches = re.search(r"batch_group_count=(\d+)", instruction.rest)
    return 2.0 * products / (int(batches.group(1)) if batches else 1)


def _visit(
    computations: Mapping[str, dict[str, Instruction]],
    name: str,
    times: float,
    top_level: bool,
    axes_of: Callable[[Sequence[int]], tuple[str, ...]],
    costs: Costs,
) -> None:
    body = computations[name]
    for instruction in body.values():
        kind = instruction.kind.removesuffix("-start")
        for shape in instruction.shapes:
            if shape.size > costs.largest.size:
                costs.largest = shape
        if kind in ("dot", "convolution"):
            costs.flops += times * product_flops(instruction, [body[op].shapes[0] for op in instruction.operands[:2]])
        if kind in COLLECTIVES and not instruction.kind.endswith("-done"):
            group = first_group(instruction.rest)
            costs.sent[axes_of(group)] += times * sent_bytes(kind, instruction, body, len(group))
        if instruction.kind == "send" and "_xla_megascale_transfer_type" in instruction.rest:
            costs.sent[BETWEEN_SLICES,] += times * _sent_between_slices(instruction)
        if is_kernel(instruction):
            source = re.search(r'op_name="([^"]*)"', instruction.rest)
            costs.kernels[re.sub(r"[.\d]+$", "", instruction.name), source.group(1) if source else ""] += times
        if top_level and kind not in _MOVE_NOTHING and not kind.endswith("-done"):
            costs.bytes += times * _moved(instruction, body, computations)
        for called, turns, is_body in called_by(instruction, computations):
            if turns is None:
                costs.unknown_loops += 1
            _visit(computations, called, times * (turns or 1), top_level and is_body, axes_of, costs)


def called_by(
    instruction: Instruction, computations: Mapping[str, dict[str, Instruction]]
) -> Iterator[tuple[str, int | None, bool]]:
    """Computations that an instruction runs: name, how often (None: unknown), and whether they run as top level."""
    if instruction.kind == "while":
        condition, body = (_name(instruction.rest, part) for part in ("condition", "body"))
        yield body, _turns(computations[condition]), True
    elif instruction.kind == "conditional":
        branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
        names = [name.strip().lstrip("%") for name in branches.group(1).split(",")] if branches else []
        names += [_name(instruction.rest, part) for part in ("true_computation", "false_computation")]
        yield from ((name, 1, True) for name in names[:1] if name)  # one of them runs
    elif instruction.kind in ("fusion", "call", "async-start", "call-start"):
        called = _name(instruction.rest, "calls") or _name(instruction.rest, "to_apply")
        if called:
            yield called, 1, instruction.kind == "call"


def _turns(condition: Mapping[str, Instruction]) -> int | None:
    """Turns of a loop that counts from zero: the constant that its counter is compared with."""
    for instruction in condition.values():
        if instruction.kind == "compare" and "direction=LT" in instruction.rest:
            for operand in instruction.operands:
                found = condition.get(operand)
                if found is not None and found.kind == "constant":
                    value = re.match(r"(\d+)\)", found.rest)
                    return int(value.group(1)) if value else None
    return None


def _moved(
    instruction: Instruction, body: Mapping[str, Instruction], computations: Mapping[str, dict[str, Instruction]]
) -> float:
    """Bytes that an operation moves: of an array that it takes a slice of, or writes one into, the slice alone."""
    total = 0.0
    results = list(enumerate(instruction.shapes))
    for number, operand in enumerate(instruction.operands):
        given = body[operand].shapes if operand in body else ()
        if instruction.kind.endswith("-start"):  # what begins a transfer hands on what it was given
            results = _without(results, given)
        if instruction.kind == "slice-start":
            total += sum(results[0][1].size for shape in given if shape.in_memory)
        elif whole := sum(shape.size for shape in given if shape.in_memory):
            total += min(_read(instruction, number, whole, computations), whole)
    for number, shape in results:
        if shape.in_memory:
            total += min(_written(instruction, number, body, shape.size, computations), shape.size)
    # A kernel is given the whole cache of all layers, and says itself how much it fetches.
    stated = re.search(r'"bytes_accessed":"(\d+)"', instruction.rest) if is_kernel(instruction) else None
    return min(total, float(stated.group(1))) if stated else total


def _without(results: Sequence[tuple[int, Shape]], given: Sequence[Shape]) -> list[tuple[int, Shape]]:
    """Numbered results but for the first that is equal to each given one."""
    left = list(results)
    for shape in given:
        again = next((one for one in left if one[1] == shape), None)
        if again is not None:
            left.remove(again)
    return left


def _read(user: Instruction, number: int, whole: float, computations: Mapping[str, dict[str, Instruction]]) -> float:
    """Bytes of operand `number` that an instruction reads."""
    if user.kind in ("slice", "dynamic-slice", "gather") and number == 0:
        return sum(shape.size for shape in user.shapes)
    if user.kind in ("dynamic-update-slice", "scatter") and number == 0:
        return 0.0
    if user.kind != "fusion":
        return whole
    inside = computations[_name(user.rest, "calls")]
    given = [
        found.name for found in inside.values() if found.kind == "parameter" and found.rest.startswith(f"{number})")
    ]
    return _read_by_users(given[0], inside, whole, computations) if given else whole


def _read_by_users(
    name: str,
    inside: Mapping[str, Instruction],
    whole: float,
    computations: Mapping[str, dict[str, Instruction]],
) -> float:
    total = 0.0
    for user in inside.values():
        for number, operand in enumerate(user.operands):
            if operand == name:
                total += (
                    _read_by_users(user.name, inside, whole, computations)
                    if _renames(user, number, computations)
                    else _read(user, number, whole, computations)
                )
    return min(total, whole)


def _renames(user: Instruction, number: int, computations: Mapping[str, dict[str, Instruction]]) -> bool:
    """Whether the result of an instruction is its operand, as it stands in memory; the compiler nests fusions of it."""
    if user.kind != "fusion":
        return user.kind in ("bitcast", "reshape")
    inside = computations[_name(user.rest, "calls")]
    last = list(inside.values())[-1]
    while last.kind in ("bitcast", "reshape"):
        last = inside[last.operands[0]]
    return last.kind == "parameter" and last.rest.startswith(f"{number})")


def _written(
    instruction: Instruction,
    number: int,
    body: Mapping[str, Instruction],
    whole: float,
    computations: Mapping[str, dict[str, Instruction]],
) -> float:
    """Bytes of result `number` that an instruction writes."""
    if instruction.kind == "fusion":
        inside = computations[_name(instruction.rest, "calls")]
        last = list(inside.values())[-1]  # the result is written last
        if last.kind == "tuple":
            last = inside.get(last.operands[number], last)
        while last.kind in ("bitcast", "reshape") and last.operands[0] in inside:
            last = inside[last.operands[0]]
        return _written(last, 0, inside, whole, computations)
    if instruction.kind not in ("dynamic-update-slice", "scatter"):
        return whole
    update = body.get(instruction.operands[1 if instruction.kind == "dynamic-update-slice" else -1])
    return whole if update is None else sum(shape.size for shape in update.shapes)


def sent_bytes(kind: str, instruction: Instruction, body: Mapping[str, Instruction], devices: int) -> float:
    """Bytes that a device sends.

    Args:
        kind: the operation, such as all-gather.
        instruction: the line of the program.
        body: the instructions that its operands are of, by name.
        devices: that take part.
    """
    given = sum(shape.size for op in instruction.operands if op in body for shape in body[op].shapes)
    if kind == "collective-permute":
        return float(given)
    if kind == "all-gather":
        return float(given * (devices - 1))
    share = (devices - 1) / devices
    return (2 if kind == "all-reduce" else 1) * given * share


def _sent_between_slices(instruction: Instruction) -> float:
    """Bytes that a device sends to other slices: such collectives go through the host, as pairs of send and receive."""
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
    target = re.search(r'_xla_megascale_target="([^"]*)"', instruction.rest)
    # "{1,2}x{0:15}" names a group of slices, counted from one, and the devices in each.
    slices = len(target.group(1).split("x")[0].strip("{}").split(",")) if target else 2
    given = float(instruction.shapes[0].size)
    if kind is not None and kind.group(1) == "ALL_REDUCE":
        return 2 * given * (slices - 1) / slices
    if kind is not None and kind.group(1) == "REDUCE_SCATTER":
        return given * (slices - 1) / slices
    return given * (slices - 1)


def first_group(rest: str) -> list[int]:
    """The devices of the first group of a collective."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    if listed:
        return [int(number) for number in listed.group(1).split(",")]
    named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest)
    if named:
        sizes = {name.strip(" '"): int(size) for name, size in (axis.split("=") for axis in named.group(1).split(","))}
        over = [name.strip(" '") for name in named.group(2).split(",")]
        numbers = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        return numbers[tuple(slice(None) if name in over else 0 for name in sizes)].ravel().tolist()
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if iota:
        shape = [int(size) for size in iota.group(3).split(",")]
        numbers = np.arange(math.prod(shape)).reshape(shape)
        if iota.group(4):
            numbers = numbers.transpose([int(axis) for axis in iota.group(4).split(",")])
        return numbers.reshape(int(iota.group(1)), int(iota.group(2)))[0].tolist()
    pairs = re.search(r"source_target_pairs=\{([\d,{}]*)\}", rest)
    moved = [pair for pair in re.findall(r"(\d+),(\d+)", pairs.group(1)) if pair[0] != pair[1]] if pairs else []
    return [int(moved[0][0]), int(moved[0][1])] if moved else [0]


def _pairs_in_window(size: int, window: int, out: int, stride: int, pad: int, lhs_dilate: int, rhs_dilate: int) -> int:
    """Pairs of output and window position that meet an element and neither padding nor a hole."""
    place = np.arange(out)[:, None] * stride + np.arange(window)[None] * rhs_dilate - pad
    return int(((place % lhs_dilate == 0) & (place >= 0) & (place < (size - 1) * lhs_dilate + 1)).sum())


def _window(rest: str, count: int) -> dict[str, list[int]]:
    found = re.search(r"window=\{([^}]*)\}", rest)
    window = dict(part.split("=") for part in found.group(1).split()) if found else {}

    def values(name: str, default: int) -> list[int]:
        return [int(value.split("_")[0]) for value in window[name].split("x")] if name in window else [default] * count

    return {
        "stride": values("stride", 1),
        "pad": values("pad", 0),
        "lhs_dilate": values("lhs_dilate", 1),
        "rhs_dilate": values("rhs_dilate", 1),
    }


def _instruction(line: str) -> Instruction:
    left, right = line.split(" = ", 1)
    name = left.strip().removeprefix("ROOT ").lstrip("%")
    types, rest = _balanced(right) if right.startswith("(") else right.split(" ", 1)
    kind, rest = rest.lstrip().split("(", 1)
    inside, attributes = _balanced("(" + rest)
    operands = tuple(re.findall(r"%([\w.-]+)", inside))
    shown = inside[1:] + attributes if kind in ("constant", "parameter") else attributes
    return Instruction(name, tuple(read_shapes(types)), kind, operands, shown)


def read_shapes(types: str) -> Iterator[Shape]:
    """The arrays of a type, or of a list of types, as a program's text writes them."""
    for dtype, dims, layout in _SHAPE.findall(types):
        if dtype in _BYTES:
            on_chip = re.search(r"S\((\d+)\)", layout)
            yield Shape(dtype, tuple(int(size) for size in dims.split(",") if size), on_chip is None)


def is_kernel(instruction: Instruction) -> bool:
    """Whether it calls a kernel of Pallas."""
    return instruction.kind == "custom-call" and f'custom_call_target="{KERNEL_TARGET}"' in instruction.rest


def operand_shapes(call: Instruction) -> list[Shape]:
    """The arrays that a kernel of Pallas is given; of other instructions none are found."""
    layouts = re.search(r"operand_layout_constraints=\{(.*?)\}, frontend", call.rest)
    return list(read_shapes(layouts.group(1))) if layouts else []


def _balanced(text: str) -> tuple[str, str]:
    """What stands in the brackets that the text begins with, and what follows."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: place + 1], text[place + 1 :]
    return text, ""


def _numbers(rest: str, name: str) -> list[int]:
    found = re.search(name + r"=\{([\d,]*)\}", rest)
    return [int(number) for number in found.group(1).split(",") if number] if found else []


def _name(rest: str, part: str) -> str:
    found = re.search(part + r"=%?([\w.-]+)", rest)
    return found.group(1) if found else ""
