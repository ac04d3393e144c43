"""What the TPU kernels go through, by the sizes and spans of a call: for those who estimate its time."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from swjax.attention.tpu_blocks import Plan, TPUBlocks, make_plan
from swjax.streaming import KeySpans

KEY_GRADIENTS = "span_attention_key_gradients"
"""The kernel whose grid is over blocks of keys."""

PRODUCTS = {
    "span_attention_forward": 2,
    "span_attention_gradients": 5,
    "span_attention_query_gradient": 3,
    KEY_GRADIENTS: 4,
}
"""Kernel -> products of a tile of keys with a block of rows."""


@dataclass(frozen=True)
class KernelWork:
    """What a kernel does for one row of a batch and one key head, in bfloat16; the mean over layers.

    Attributes:
        products: of a tile of keys with a block of rows.
        tile, rows: keys of a tile, and rows of a block, those that fill it up among them.
        row_blocks: blocks of rows.
        pairs: of query and key in a tile.
        whole, masked: tiles that all rows of a block see whole, and others that are gone through.
        itemsize: bytes of a number.
    """

    products: int
    tile: int
    rows: int
    row_blocks: int
    pairs: int
    whole: float
    masked: float
    itemsize: int


def products_of(name: str) -> int:
    """Products of a tile of a kernel.

    Args:
        name: the kernel's, or that of a call of it.

    Raises:
        ValueError: if it is not one of ours.
    """
    found = next((number for known, number in PRODUCTS.items() if name.startswith(known)), None)
    if found is None:
        raise ValueError(f"the program has a kernel {name!r}, of which nothing is known")
    return found


def kernel_work(
    name: str, layers: Sequence[tuple[KeySpans, int]], *, group: int, head_dim: int, num_keys: int
) -> KernelWork:
    """The work of a kernel with its default blocks.

    Args:
        name: the kernel's, or that of a call of it.
        layers: spans of one row, [T], each with the number of layers that have them.
        group: query heads to a key head.
        head_dim: features of a head.
        num_keys: keys of a row.

    Raises:
        ValueError: if the kernel is not one of ours.
    """
    products, blocks = products_of(name), TPUBlocks()
    q = jax.ShapeDtypeStruct((1, len(layers[0][0].start), group, head_dim), jnp.bfloat16)
    rows = blocks.forward_rows if products == 2 else blocks.rows
    keys = blocks.backward_keys if name.startswith(KEY_GRADIENTS) else blocks.keys
    plan = make_plan(q, 1, num_keys, blocks, rows=rows, keys=keys)  # type: ignore[arg-type]
    counts = np.array([np.multiply(count_tiles(spans, plan), number) for spans, number in layers]).sum(axis=0)
    whole, masked = (float(count) / sum(number for _, number in layers) for count in counts)
    pairs = plan.tile * group * plan.queries
    return KernelWork(products, plan.tile, plan.rows, plan.num_row_blocks, pairs, whole, masked, plan.itemsize)


def count_tiles(spans: KeySpans, plan: Plan) -> tuple[int, int]:
    """Tiles of keys that all blocks of rows of one head go through: those that all rows see whole, and the others.

    Args:
        spans: of one row, [T].
        plan: of the kernel's call.
    """
    missing = plan.num_row_blocks * plan.queries - plan.length
    start, stop = (np.pad(np.asarray(edge), (0, missing)).reshape(plan.num_row_blocks, -1) for edge in spans)
    is_empty = start >= stop
    high = np.where(is_empty, 0, stop).max(axis=1)
    low = np.minimum(np.where(is_empty, plan.num_keys, start).min(axis=1), high)
    tiles = -(-high // plan.tile) - low // plan.tile
    first_whole, end_whole = -(-start.max(axis=1) // plan.tile), stop.min(axis=1) // plan.tile
    whole = np.maximum(np.minimum(end_whole, -(-high // plan.tile)) - np.maximum(first_whole, low // plan.tile), 0)
    return int(whole.sum()), int((tiles - whole).sum())
