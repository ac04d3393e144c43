"""The bundles of a compiled program's kernels, from a process of their own in which each is compiled alone.

libtpu writes the bundles of all that a process compiles or of nothing, and packs every operation a second time for it:
for a training step that takes longer than compiling does. A kernel alone has the bundles that it has in a program, as
long as the compiler's options are the same.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from swjax.plain import Json
from swjax.planning.bundles import Block, dump_to, emptied, read_blocks
from swjax.planning.hlo import KERNEL_TARGET, Instruction, Shape, is_kernel, operand_shapes, parse
from swjax.planning.topology import PlanError, open_topology

_CONFIG = "backend_config="
_KINDS = {"pred": "bool", "s": "int", "u": "uint", "f": "float", "bf": "bfloat"}


def kernel_blocks(text: str, topology: str, options: Mapping[str, Any]) -> Mapping[str, list[Block]]:
    """Name of a kernel in a compiled program -> its blocks of bundles, in their order.

    Args:
        text: `compiled.as_text()`.
        topology: whose chips it was compiled for.
        options: that it was compiled with.

    Raises:
        PlanError: the kernels do not compile alone; the message has what the compiler says.
    """
    found = [one for body in parse(text)[0].values() for one in body.values() if is_kernel(one)]
    names: dict[str, list[str]] = {}  # layers that are no loop have the same kernel each, by names of their own
    for call in found:
        names.setdefault(json.dumps(_request(call)), []).append(call.name)
    if not names:
        return {}
    asked = {"topology": topology, "options": dict(options), "kernels": [json.loads(one) for one in names]}
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(asked),
        env={**os.environ, "JAX_PLATFORMS": "cpu"},  # chips of this machine stay free
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PlanError(f"the kernels of the program do not compile alone: {done.stderr.strip()[-2000:]}")
    answer = json.loads(done.stdout)
    blocks = [[Block(**block) for block in one] for one in answer]
    return {name: one for same, one in zip(names.values(), blocks, strict=True) for name in same}


def _request(call: Instruction) -> Json:
    """All that a kernel is compiled from."""
    config, _ = json.JSONDecoder().raw_decode(call.rest.partition(_CONFIG)[2])
    return {
        "config": {"custom_call_config": config["custom_call_config"]},
        "operands": [_plain(shape) for shape in operand_shapes(call)],
        "results": [_plain(shape) for shape in call.shapes],
    }


def _plain(shape: Shape) -> tuple[Sequence[int], str]:
    kind, bits = re.fullmatch(r"([a-z]+)(\d*)", shape.dtype).groups()  # type: ignore[union-attr]
    return shape.dims, _KINDS[kind] + bits


def _compile(kernel: Json, device: jax.Device, options: Json, folder: Path) -> list[Block]:
    """Compile a kernel where libtpu writes bundles to a folder."""
    results = [jax.ShapeDtypeStruct(dims, dtype) for dims, dtype in kernel["results"]]
    sharding = SingleDeviceSharding(device)
    operands = [jax.ShapeDtypeStruct(dims, dtype, sharding=sharding) for dims, dtype in kernel["operands"]]
    call = jax.ffi.ffi_call(
        KERNEL_TARGET, results, custom_call_api_version=1, legacy_backend_config=json.dumps(kernel["config"])
    )
    with emptied(folder):
        jax.jit(call, compiler_options=options).lower(*operands).compile()
        (blocks,) = (one for one in read_blocks(folder).values() if any(block.matrix for block in one))
    return blocks


def _answer() -> None:
    """Reads kernels from the standard input and writes their blocks to the standard output, as JSON."""
    asked = json.load(sys.stdin)
    jax.config.update("jax_enable_compilation_cache", False)  # of what it holds no bundles are written
    with tempfile.TemporaryDirectory(prefix="swjax-plan-") as name:
        folder = Path(name)
        dump_to(folder)
        device = open_topology(asked["topology"])[0]
        found = [_compile(kernel, device, asked["options"], folder) for kernel in asked["kernels"]]
    json.dump([[asdict(block) for block in blocks] for blocks in found], sys.stdout)


if __name__ == "__main__":
    _answer()
