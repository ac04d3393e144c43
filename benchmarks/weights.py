"""Memory and time of writing and reading checkpoints at the sizes of released models, with random weights.

    python benchmarks/weights.py                          # all of 3B: 7.5 GB of disk, a few minutes
    python benchmarks/weights.py --preset 3b --layers 2   # its widths and vocabulary, fewer layers
    python benchmarks/weights.py --only export load --devices 8

Each figure comes from a process of its own, so that its peak of memory is its own too:

    export   save_hf of parameters that come into being when they are read, as from a disk
    import   open_hf, and every parameter compared with what was written, bit for bit, some rows at a time
    load     load_hf onto --devices CPU devices; in memory there is the model itself and what comes on top
    verify   logits beside those of transformers, both in float32 (needs torch; only when asked for)

Peaks are resident memory as the operating system saw it, less what the process had before it began.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from swjax.hub import load_hf, open_hf, save_hf
from swjax.hub.verify import compare_logits
from swjax.models.family import abstract_model
from swjax.models.parameters import split_parameters
from swjax.models.qwen2_5_vl import Qwen2_5_VLConfig
from swjax.models.stored import StoredArray

STEPS = ("export", "import", "load", "verify")
BY_DEFAULT = STEPS[:3]
GIB = 2**30


def model_config(preset: str, layers: int | None) -> Qwen2_5_VLConfig:
    """A released size, or its widths and vocabulary with so many layers and vision blocks."""
    if layers is None:
        return Qwen2_5_VLConfig.preset(preset)
    vision = {"depth": layers, "full_attention_blocks": [layers - 1]}
    return Qwen2_5_VLConfig.preset(preset, text={"num_layers": layers}, vision=vision)


def random_parameters(config: Qwen2_5_VLConfig) -> dict[str, StoredArray]:
    """Parameters in bfloat16 that come into being, the same every time, when they are read.

    Norms lie between 0.5 and 1.9; everything else has both signs and a standard deviation of about 0.018.
    """
    shapes = {path: leaf.shape for path, leaf in split_parameters(abstract_model(config))[1].items()}
    return {path: _random_array(path, shape) for path, shape in shapes.items()}


def _random_array(path: str, shape: tuple[int, ...]) -> StoredArray:
    stacked = "/layers/" in path or "/blocks/" in path
    # Random sign, last bit of the exponent, and mantissa.
    keep, exponent = (0x00FF, 0x3F00) if "norm" in path else (0x80FF, 0x3C00)

    def draw(row: int, size: tuple[int, ...]) -> np.ndarray:
        rng = np.random.Generator(np.random.SFC64([zlib.crc32(path.encode()), row]))
        bits = rng.integers(0, 2**16, size, np.uint16)
        bits &= np.uint16(keep)
        bits |= np.uint16(exponent)
        return bits.view(jnp.bfloat16)

    def read(block: tuple[slice, ...]) -> np.ndarray:
        if not stacked:
            return draw(0, shape)[block]
        return np.stack([draw(row, shape[1:])[block[1:]] for row in range(block[0].start, block[0].stop)])

    return StoredArray(shape, np.dtype(jnp.bfloat16), read, rows=1 if stacked else shape[0])


def run_step(step: str, args: argparse.Namespace) -> dict[str, float | int | bool]:
    """One step in this process; returns its figures."""
    config = model_config(args.preset, args.layers)
    parameters = random_parameters(config)
    jax.block_until_ready(jnp.zeros(8) + 1)
    before, began = _peak_bytes(), time.monotonic()
    figures: dict[str, float | int | bool] = {}
    if step == "export":
        save_hf(parameters, args.folder, config=config, max_shard_size=args.max_shard_size)
        sizes = [file.stat().st_size for file in args.folder.glob("*.safetensors")]
        figures |= {"bytes_on_disk": sum(sizes), "files": len(sizes), "largest_file_bytes": max(sizes)}
    elif step == "import":
        figures["bit_identical"] = _same(parameters, open_hf(args.folder)[1])
    elif step == "verify":
        figures["largest_relative_difference"] = max(compare_logits(args.folder).values())
    else:
        model = load_hf(args.folder, shardings=_spread)
        leaves = jax.block_until_ready(split_parameters(model)[1]).values()
        held = [shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards]
        figures["parameter_bytes_on_devices"] = sum(held)
    return figures | {"seconds": time.monotonic() - began, "peak_bytes": _peak_bytes() - before}


def _same(written: dict[str, StoredArray], found: dict[str, StoredArray]) -> bool:
    if written.keys() != found.keys():
        return False
    for path, array in written.items():
        for start, stop in found[path].row_ranges():
            theirs = found[path].read_rows(start, stop)
            if not np.array_equal(array.read_rows(start, stop).view(np.uint16), theirs.view(np.uint16)):
                return False
    return True


def _spread(shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, NamedSharding]:
    """Every parameter over all devices, along the widest axis that they divide."""
    mesh = jax.make_mesh((jax.device_count(),), ("all",))
    shardings = {}
    for path, leaf in shapes.items():
        divided = [axis for axis, size in enumerate(leaf.shape) if size % jax.device_count() == 0]
        widest = max(divided, key=lambda axis: leaf.shape[axis], default=None)
        axes = ["all" if axis == widest else None for axis in range(len(leaf.shape))]
        shardings[path] = NamedSharding(mesh, PartitionSpec(*axes))
    return shardings


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print a line of JSON a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="3b")
    parser.add_argument("--layers", type=int, help="decoder layers and vision blocks (default: the preset's)")
    parser.add_argument("--max-shard-size", default="5GB")
    parser.add_argument("--devices", type=int, default=1, help="CPU devices to load onto")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=BY_DEFAULT)
    parser.add_argument("--folder", type=Path, help="where to write, and to leave it (default: written and removed)")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.step:
        print(json.dumps(run_step(args.step, args)))
        return
    folder = args.folder or Path(tempfile.mkdtemp(prefix="weights"))
    layers = ["--layers", str(args.layers)] if args.layers else []
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={args.devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    try:
        for step in args.only:
            words = ["--step", step, "--preset", args.preset, *layers, "--max-shard-size", args.max_shard_size]
            command = [sys.executable, __file__, *words, "--folder", str(folder)]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            print(json.dumps({"step": step} | json.loads(done.stdout)), flush=True)
    finally:
        if args.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
