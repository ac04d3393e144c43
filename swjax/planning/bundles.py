"""What the TPU compiler makes of a kernel: the bundles of its loops, and how full they are.

A core issues at most one bundle a cycle, in order, so a loop takes at least as many cycles as it has bundles, and at
least as many as its products take on the matrix units. libtpu writes the final bundles of every program that it
compiles to a folder, if it is told so before it is loaded (`dump_to`). In a file of bundles, `>` marks the depth of the
loop that a bundle belongs to and `sbr` a branch; a file beside it has the slots that each bundle fills.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_BUNDLES = re.compile(r"^(?:\d+-)?(.+?)-\d+-final_bundles\.txt$")
_SLOTS = "final_hlo-static-per-bundle-utilization.txt"
_LINE = re.compile(r"\s*0x([0-9a-f]+)\s+(LB|LH|LE|PB|PF|CT)?\s*:\s*(>*)\s*\{")
_MATRIX, _FILL, _SPILL = 0, 6, 8
_FLAGS = "LIBTPU_INIT_ARGS"


@dataclass(frozen=True)
class Block:
    """Bundles between two branches.

    Attributes:
        depth: of the loops around it; the innermost loop of a kernel is the one over tiles.
        bundles: how many; a core takes as many cycles or more.
        matrix: share of the slots for the matrix units that are filled.
        fills, spills: registers that are read from and written to memory for want of registers.
    """

    depth: int
    bundles: int
    matrix: float
    fills: int
    spills: int


def dump_to(folder: Path) -> None:
    """Tell libtpu to write the final bundles of all that it compiles; it must not be loaded yet.

    Args:
        folder: where to; it must be there.
    """
    flags = (
        f"--xla_jf_dump_to={folder}",
        "--xla_jf_dump_llo_text=true",
        "--xla_jf_dump_hlo_text=false",
        "--xla_jf_dump_llo_pass_label_regex=final_(bundles|hlo-static).*",
    )
    os.environ[_FLAGS] = " ".join((os.environ.get(_FLAGS, ""), *flags)).strip()


@contextlib.contextmanager
def emptied(folder: Path) -> Iterator[None]:
    """Removes what the compiler wrote to a folder when it has been read: hundreds of megabytes for a large model."""
    try:
        yield
    finally:
        for file in folder.iterdir():
            file.unlink()


def read_blocks(folder: Path) -> Mapping[str, list[Block]]:
    """Name of an operation in the compiled program -> its blocks of bundles, in their order.

    Args:
        folder: what libtpu wrote to.
    """
    found: dict[str, list[Block]] = {}
    for file in sorted(folder.glob("*final_bundles.txt")):
        name = _BUNDLES.match(file.name)
        if name is None or name.group(1).endswith("schedule-analysis"):
            continue
        prefix = file.name[: name.end(1)]
        slots = next(iter(folder.glob(f"{prefix}-*{_SLOTS}")), None)
        if slots is not None:
            found[name.group(1)] = _blocks(file, slots)
    return found


def _blocks(file: Path, slots: Path) -> list[Block]:
    capacity, table = slots.read_text().split("== UTILIZATION:")
    matrix_slots = int(capacity.strip().splitlines()[-1].split()[_MATRIX])  # 4 on v5e and v5p, 2 on v6e
    rows = [[int(number) for number in line.split()] for line in table.splitlines() if line.strip()]
    cuts, depths = [0], dict[int, int]()
    for line in file.read_text().splitlines():
        found = _LINE.match(line)
        if found:
            number = int(found.group(1), 16)
            depths[number] = len(found.group(3))
            if found.group(2) or "sbr.rel" in line:
                cuts.append(number)
    blocks = []
    for first, stop in zip(cuts, [*cuts[1:], len(rows)], strict=True):
        part = rows[first:stop]
        if part:
            filled = sum(row[_MATRIX] for row in part)
            blocks.append(
                Block(
                    depth=max(depths.get(number, 0) for number in range(first, stop)),  # empty bundles have none
                    bundles=len(part),
                    matrix=filled / matrix_slots / len(part),
                    fills=sum(row[_FILL] for row in part),
                    spills=sum(row[_SPILL] for row in part),
                )
            )
    return blocks
