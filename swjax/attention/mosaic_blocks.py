"""Tiles of queries and blocks of keys: what the Mosaic GPU kernels have in common (`swjax.attention.mosaic`)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Ref
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, DTypeLike, Float, Int32

from swjax.attention.blockwise import LOG2E, UNSEEN, Index, pad
from swjax.attention.reach import union
from swjax.streaming import KeySpans

ROWS = 64
"""Rows of a tile that one warpgroup multiplies: the tensor cores of Hopper take no fewer."""

MATRIX = plgpu.Layout.WGMMA
BY_ROW, BY_COLUMN = MATRIX.reduce(1), MATRIX.reduce(0)
"""Registers with a matrix that tensor cores multiply, and with one number for each of its rows or columns."""

PARAMETERS = plgpu.CompilerParams(approx_math=True, reduction_scratch_bytes=0)
"""Reductions are within rows, which needs no shared memory to speak of."""

Memory = TypeVar("Memory")

_ALIGNED = 8  # keys that the hardware's copies take at once


class Plan(NamedTuple):
    """Static sizes of one call.

    Attributes:
        group: query heads to a key head.
        warpgroups: that compute, each with `ROWS` of a tile's queries.
        keys, stages: of a step, and steps that are fetched ahead.
        length, num_keys, width: queries, keys and features of the padded arrays.
        scale: of scores, to base two.
        interpret: what Pallas is to interpret the kernel with, if it is to.
        splits: programs among which the keys of one tile are divided.
    """

    batch: int
    heads: int
    group: int
    warpgroups: int
    keys: int
    stages: int
    length: int
    num_keys: int
    width: int
    scale: float
    interpret: object
    splits: int = 1

    @property
    def tile(self) -> int:
        """Queries of one program."""
        return self.warpgroups * ROWS

    @property
    def num_tiles(self) -> int:
        """Tiles of queries in a row."""
        return self.length // self.tile


class Operands(NamedTuple):
    """Padded arrays: whole tiles of queries, eights of keys, features a multiple of 64.

    Keys and values are [B, S, K, H], or of a cache [layers, B, K, S, H].

    Attributes:
        reach: the first block of keys of each tile, and the one after the last.
        whole: of each warpgroup's queries, the first block that all see whole, and the one after the last.
        edges: their spans' starts and stops.
    """

    reach: Int32[Array, "B tiles 2"]
    whole: Int32[Array, "B parts 2"]
    edges: Int32[Array, "B parts 2 64"]
    q: Float[Array, "B T N H"]
    k: Float[Array, "*keys"]
    v: Float[Array, "*keys"]


def prepare(
    q: Float[Array, "B T N H"],
    k: Float[Array, "*keys"],
    v: Float[Array, "*keys"],
    spans: KeySpans,
    *,
    keys: int,
    stages: int,
    interpret: object,
) -> tuple[Plan, Operands]:
    """Sizes and operands for steps of so many keys. Added queries see nothing.

    Args:
        q: queries.
        k, v: keys and values, or a whole cache of them ([layers, B, K, S, H]).
        spans: keys that each query sees.
        keys: of one step.
        stages: steps that are fetched ahead.
        interpret: what Pallas is to interpret the kernel with, if it is to.
    """
    axis, head_axis = (3, 2) if k.ndim == 5 else (1, 2)
    num_keys, key_heads = k.shape[axis], k.shape[head_axis]
    warpgroups = 1 if q.shape[1] <= ROWS else 2
    tile = warpgroups * ROWS
    start, stop = (pad(jnp.clip(edge.astype(jnp.int32), 0, num_keys), 1, tile) for edge in spans)
    scale = q.shape[3] ** -0.5
    q = pad(pad(q, 1, tile), 3, 64)
    k, v = (pad(pad(x, axis, _ALIGNED), -1, 64) for x in (k, v))
    tiles = (q.shape[0], -1, tile)
    low, high = union(start.reshape(tiles), stop.reshape(tiles), num_keys)
    parts = (q.shape[0], -1, ROWS)
    first_whole = -(-start.reshape(parts).max(axis=-1) // keys)
    operands = Operands(
        reach=jnp.stack([low // keys, -(-high // keys)], axis=-1),
        whole=jnp.stack([first_whole, stop.reshape(parts).min(axis=-1) // keys], axis=-1),
        edges=jnp.stack([start.reshape(parts), stop.reshape(parts)], axis=2),
        q=q,
        k=k,
        v=v,
    )
    plan = Plan(
        batch=q.shape[0],
        heads=q.shape[2],
        group=q.shape[2] // key_heads,
        warpgroups=warpgroups,
        keys=keys,
        stages=stages,
        length=q.shape[1],
        num_keys=k.shape[axis],
        width=q.shape[3],
        scale=scale * LOG2E,
        interpret=interpret,
    )
    return plan, operands


def shared(dtype: DTypeLike, *shape: int) -> pl.MemoryRef:
    """Shared memory for matrices, in the order in which copies write and tensor cores read them."""
    columns = 128 // jnp.dtype(dtype).itemsize
    return plgpu.SMEM(shape, dtype, transforms=(plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(128)))


def across(numbers: Array, shape: tuple[int, ...]) -> Array:
    """A number for each row, in all columns."""
    return jax.lax.broadcast_in_dim(numbers, shape, [0])


def down(numbers: Array, shape: tuple[int, ...]) -> Array:
    """A number for each column, in all rows."""
    return jax.lax.broadcast_in_dim(numbers, shape, [1])


def index_along(axis: int, first: Index, shape: tuple[int, ...]) -> Array:
    """Index of each row (or column), the first of which is given.

    Args:
        axis: 0 to number rows, 1 to number columns.
        first: index of the first of them.
        shape: rows and columns of the matrix.

    Returns:
        int32 of that shape, in registers (`MATRIX`).
    """
    return first + plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=MATRIX)


def mask_rows(scores: Array, is_whole: Array | bool, first: Index, start: Array, stop: Array) -> Array:
    """Scores [queries, keys] with those of unseen keys far below all others, unless all are seen.

    Args:
        scores: of a block.
        is_whole: whether all queries see all keys.
        first: number of the first key.
        start, stop: edges of the queries' spans.
    """

    def masked() -> Array:
        key = index_along(1, first, scores.shape)
        seen = (key >= across(start, scores.shape)) & (key < across(stop, scores.shape))
        return jnp.where(seen, scores, UNSEEN)

    return jax.lax.cond(is_whole, lambda: scores, masked)


def key_blocks(
    k_ref: Ref, v_ref: Ref, row: Index, head: Index, layer: Index | None, plan: Plan
) -> Callable[[Index], tuple[tuple[Ref], tuple[Ref]]]:
    """A function of a block's number that gives the keys, and the values, of one head where they lie.

    Args:
        k_ref, v_ref: all keys and values, or the whole cache.
        row, head: which.
        layer: of the cache; None if there is none.
        plan: sizes.
    """

    def at(block: Index) -> tuple[tuple[Ref], tuple[Ref]]:
        some = pl.ds(block * plan.keys, plan.keys)
        where = (row, some, head) if layer is None else (layer, row, head, some)
        return (k_ref.at[where],), (v_ref.at[where],)

    return at


def mask_columns(scores: Array, is_whole: Array | bool, first: Index, edges: Ref) -> Array:
    """Scores [keys, queries] with those of unseen keys far below all others, unless all are seen.

    Args:
        scores: of a block; `mask_rows` takes them the other way round.
        is_whole: whether all queries see all keys.
        first: number of the first key.
        edges: int32[2, queries] in shared memory, starts and stops of the queries' spans.
    """

    def masked() -> Array:
        # One edge after the other: registers are scarce.
        key = index_along(0, first, scores.shape)
        start = down(plgpu.layout_cast(edges[0], BY_COLUMN), scores.shape)
        later = jnp.where(key >= start, scores, UNSEEN)
        stop = down(plgpu.layout_cast(edges[1], BY_COLUMN), scores.shape)
        return jnp.where(key < stop, later, UNSEEN)

    return jax.lax.cond(is_whole, lambda: scores, masked)


def add_products(
    plan: Plan, *terms: tuple[Array, Array, Ref], meanwhile: Callable[[], None] = lambda: None
) -> tuple[Array, ...]:
    """Of each (sums, a, b), sums + a @ b, where a is in registers and b in shared memory.

    Args:
        plan: sizes.
        terms: what to multiply and add.
        meanwhile: something to do while that is computed.
    """
    if plan.interpret:  # the interpreter knows of no product with a matrix in registers
        meanwhile()
        return tuple(sums + jnp.dot(a, b[...], preferred_element_type=jnp.float32) for sums, a, b in terms)

    def multiply(products: Sequence[Any]) -> None:
        for product, (_, a, b) in zip(products, terms, strict=True):
            plgpu.wgmma(product, a, b)
        meanwhile()

    return pl.run_state(multiply)(tuple(plgpu.ACC.init(sums) for sums, _, _ in terms))


def set_registers(warpgroups: int, *, compute: bool) -> None:
    """Gives the registers that the memory's warpgroup has no use for to the two that compute."""
    if warpgroups == 2:
        plgpu.set_max_registers(240 if compute else 24, action="increase" if compute else "decrease")


class Channel(NamedTuple, Generic[Memory]):
    """What is fetched and freed together: as a kernel asks for it, or as its body has it.

    Attributes:
        buffers: shared memory with a slot for each stage.
        filled: completes when all buffers of a slot are there.
        freed: completes when all warpgroups have done with them.
    """

    buffers: tuple[Memory, ...]
    filled: Memory
    freed: Memory


def fetch_ahead(
    steps: Index,
    stages: int,
    channels: Sequence[Channel[Ref]],
    sources: Callable[[Index], Sequence[Sequence[Any]]],
) -> None:
    """Copies what every step needs, as soon as there is room: all that the memory's warpgroup does.

    Args:
        steps: of the computation.
        stages: that shared memory has room for.
        channels: where to.
        sources: of a step's number, references to copy from, for each buffer of each channel.
    """

    @pl.loop(0, steps)
    def _step(step: Index) -> None:
        slot = jax.lax.rem(step, jnp.int32(stages))
        for channel, refs in zip(channels, sources(step), strict=True):
            pl.when(step >= stages)(functools.partial(plgpu.barrier_wait, channel.freed.at[slot]))
            for ref, buffer in zip(refs, channel.buffers, strict=True):
                plgpu.copy_gmem_to_smem(ref, buffer.at[slot], channel.filled.at[slot])

    @pl.loop(jnp.maximum(steps - stages, 0), steps)
    def _last(step: Index) -> None:
        for channel in channels:
            plgpu.barrier_wait(channel.freed.at[jax.lax.rem(step, jnp.int32(stages))])
