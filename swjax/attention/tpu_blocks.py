"""Blocks of rows and tiles of keys: what the passes of the TPU kernels have in common (`swjax.attention.tpu`)."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Ref
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int32

from swjax.attention.blockwise import LOG2E, UNSEEN, Index, dot, quotient
from swjax.attention.reach import union
from swjax.streaming import KeySpans

LANES, _SUBLANES = 128, 16


@dataclass(frozen=True)
class TPUBlocks:
    """Sizes of blocks, in rows (queries x heads of a group) and keys; all multiples of 128.

    With the defaults a row block does 1,024 multiply-adds for every byte of keys and values in bfloat16, above what any
    TPU from v5e on needs to be bound by compute, and the kernels stay inside 16 MiB of VMEM, the compiler's default,
    but for `key_bytes`.

    Attributes:
        forward_rows: largest block of rows of the forward pass, a multiple of 128.
        chunk: rows whose softmax is computed while the matrix units compute the scores of the next ones.
        rows: largest block of rows of the backward pass, a multiple of 128.
        queries: largest number of queries in a block: with few heads to a group, windows keep short unions.
        keys: keys fetched at once by a block of rows.
        tile: keys computed at once; divides the others. Rows of one chunk compute with all that are fetched, in pieces:
            there is no other chunk whose products would go on beside the softmax.
        key_bytes: scratch memory for the gradients of all keys of a head, as much as 16,384 of 128 features take in
            bfloat16. Rows that need more have a kernel for queries and one for keys.
        backward_keys: keys of a block that gathers its gradients in the latter.
    """

    forward_rows: int = 4096
    chunk: int = 128
    rows: int = 1024
    queries: int = 512
    keys: int = 2048
    tile: int = 512
    backward_keys: int = 1024
    key_bytes: int = 32 * 1024**2


class Plan(NamedTuple):
    """Static sizes of one call.

    Attributes:
        group: query heads to a key head.
        queries, rows: queries of a block and its rows: queries x group, filled up to whole registers.
        keys, tile: keys fetched and computed at once.
        precision: of products.
    """

    batch: int
    length: int
    key_heads: int
    group: int
    queries: int
    rows: int
    num_row_blocks: int
    num_keys: int
    keys: int
    tile: int
    head_dim: int
    itemsize: int
    precision: jax.lax.Precision

    @property
    def is_whole(self) -> bool:
        """Whether the queries of a block fill registers, in each head of a group."""
        return self.queries * self.group == self.rows and self.queries % _SUBLANES == 0

    @property
    def num_key_blocks(self) -> int:
        """Blocks that hold all keys; the last may reach past their end."""
        return pl.cdiv(self.num_keys, self.keys)

    @property
    def score_scale(self) -> float:
        """From a product of query and key to a power of two, which is what the hardware raises."""
        return self.head_dim**-0.5 * LOG2E


def make_plan(
    q: Float[Array, "B T N H"], key_heads: int, num_keys: int, blocks: TPUBlocks, *, rows: int, keys: int
) -> Plan:
    """Sizes for one call: blocks no larger than it needs, of `rows` rows and `keys` keys at most.

    Args:
        q: queries.
        key_heads, num_keys: K and S.
        blocks: sizes of blocks.
        rows, keys: the most of a block.
    """
    batch, length, heads, head_dim = q.shape
    group = heads // key_heads
    most = _queries_of_block(group, rows, blocks.queries)
    queries = min(most, length if length < LANES else _round_up(length, LANES))
    filled = _round_up(queries * group, LANES)
    tile = min(blocks.tile if filled > blocks.chunk else keys, _round_up(num_keys, LANES))
    return Plan(
        batch=batch,
        length=length,
        key_heads=key_heads,
        group=group,
        queries=queries,
        rows=filled,
        num_row_blocks=pl.cdiv(length, queries),
        num_keys=num_keys,
        keys=min(keys, _round_up(num_keys, tile)),
        tile=tile,
        head_dim=head_dim,
        itemsize=q.dtype.itemsize,
        # The matrix unit multiplies in bfloat16; more passes make float32 of it.
        precision=jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else jax.lax.Precision.DEFAULT,
    )


def _round_up(size: int, multiple: int) -> int:
    return pl.cdiv(size, multiple) * multiple


def _queries_of_block(group: int, rows: int, most: int) -> int:
    """Whole registers of queries, so that packing the heads of a group moves no queries within one."""
    queries = min(rows // group, most)
    return max(queries // LANES * LANES, min(queries, LANES) // _SUBLANES * _SUBLANES, _SUBLANES)


def to_blocks(x: Float[Array, "B T N H"], plan: Plan) -> Float[Array, "B K g L H"]:
    """Queries as kernels fetch them, g x L / blocks rows at once: heads as they are, filled up to whole blocks.

    A projection can write them so, and nothing has to be moved. Where the queries of a block do not fill registers, as
    of one word, they are packed into rows, and g is 1.
    """
    if not plan.is_whole:
        return to_rows(x, plan)[:, :, None]
    x = jnp.pad(x, ((0, 0), (0, plan.num_row_blocks * plan.queries - plan.length), (0, 0), (0, 0)))
    return x.transpose(0, 2, 1, 3).reshape(plan.batch, plan.key_heads, plan.group, x.shape[1], plan.head_dim)


def from_blocks(x: Float[Array, "B K g L H"], plan: Plan) -> Float[Array, "B T N H"]:
    """The inverse of `to_blocks`."""
    if not plan.is_whole:
        return from_rows(x[:, :, 0], plan)
    return x.reshape(plan.batch, -1, x.shape[3], plan.head_dim).transpose(0, 2, 1, 3)[:, : plan.length]


def read_rows(ref: Ref, plan: Plan, first: int = 0, count: int | None = None) -> Float[Array, "count H"]:
    """Rows of a block of `to_blocks`, inside of a kernel: one head of a group after another.

    Args:
        ref: of the block.
        plan: sizes.
        first, count: which rows; by default all.
    """
    count = plan.rows if count is None else count
    heads, queries, _ = ref.shape
    head, offset = divmod(first, queries)
    if offset + count <= queries:
        return ref[head, pl.ds(offset, count), :]
    return ref[...].reshape(heads * queries, plan.head_dim)[first : first + count]


def write_rows(ref: Ref, rows: Float[Array, "R H"]) -> None:
    """Fills a block of `to_blocks` inside of a kernel."""
    ref[...] = rows.reshape(ref.shape).astype(ref.dtype)


def matrix_block(plan: Plan, index: Callable[..., tuple[Index, Index, Index]]) -> pl.BlockSpec:
    """Blocks of an array of `to_blocks`.

    Args:
        plan: sizes.
        index: of the kernel's grid -> numbers of the batch row, the key head and the block.
    """
    shape = (plan.group, plan.queries) if plan.is_whole else (1, plan.rows)

    def at(*grid: Index) -> tuple[Index, ...]:
        batch, head, block = index(*grid)
        return batch, head, 0, block, 0

    return pl.BlockSpec((None, None, *shape, plan.head_dim), at)


def to_rows(x: Float[Array, "B T N X"], plan: Plan) -> Float[Array, "B K R X"]:
    """Queries as rows: in each block one head of a group after another, and zeros up to whole blocks."""
    blocks, queries, width = plan.num_row_blocks, plan.queries, x.shape[-1]
    x = jnp.pad(x, ((0, 0), (0, blocks * queries - plan.length), (0, 0), (0, 0)))
    x = x.reshape(plan.batch, blocks, queries, plan.key_heads, plan.group, width).transpose(0, 3, 1, 4, 2, 5)
    x = x.reshape(plan.batch, plan.key_heads, blocks, plan.group * queries, width)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, plan.rows - plan.group * queries), (0, 0)))
    return x.reshape(plan.batch, plan.key_heads, blocks * plan.rows, width)


def from_rows(x: Float[Array, "B K R X"], plan: Plan) -> Float[Array, "B T N X"]:
    """The inverse of `to_rows`."""
    blocks, queries, width = plan.num_row_blocks, plan.queries, x.shape[-1]
    x = x.reshape(plan.batch, plan.key_heads, blocks, plan.rows, width)[:, :, :, : plan.group * queries]
    x = x.reshape(plan.batch, plan.key_heads, blocks, plan.group, queries, width).transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(plan.batch, blocks * queries, plan.key_heads * plan.group, width)[:, : plan.length]


class Reach(NamedTuple):
    """Keys that a block of rows has to do with.

    Attributes:
        low, high: the union of its spans, [low, high).
        common_low, common_high: what all of its rows see.
    """

    low: Index
    high: Index
    common_low: Index
    common_high: Index


class RowSpans(NamedTuple):
    """Spans by row.

    Attributes:
        start, stop: edges of each row's span.
        reach: the four numbers of each block's `Reach`, block after block, batch row after batch row.
    """

    start: Int32[Array, "B 1 R"]
    stop: Int32[Array, "B 1 R"]
    reach: Int32[Array, "4*B*blocks"]


def row_spans(spans: KeySpans, plan: Plan) -> RowSpans:
    """Spans of rows and blocks of rows, computed from data. Those of queries up to whole blocks are empty."""
    missing = plan.num_row_blocks * plan.queries - plan.length
    edges = (jnp.clip(edge.astype(jnp.int32), 0, plan.num_keys) for edge in spans)
    padded = (jnp.pad(edge, ((0, 0), (0, missing))) for edge in edges)
    start, stop = (edge.reshape(plan.batch, plan.num_row_blocks, plan.queries) for edge in padded)
    reach = jnp.stack(Reach(*union(start, stop, plan.num_keys), start.max(axis=-1), stop.min(axis=-1)), axis=-1)
    return RowSpans(_edge_of_rows(start, plan), _edge_of_rows(stop, plan), reach.reshape(-1))


def _edge_of_rows(edge: Int32[Array, "B blocks queries"], plan: Plan) -> Int32[Array, "B 1 R"]:
    edge = jnp.tile(edge, (1, 1, plan.group))
    edge = jnp.pad(edge, ((0, 0), (0, 0), (0, plan.rows - edge.shape[-1])))
    return edge.reshape(plan.batch, 1, -1)


def read_reach(reach_ref: Ref, batch: Index, block: Index, plan: Plan) -> Reach:
    """The reach of one block of rows, inside a kernel or the index map of one.

    Args:
        reach_ref: `RowSpans.reach` in scalar memory; more numbers may stand behind it.
        batch: number of the batch row.
        block: number of the block of rows in it.
        plan: sizes.
    """
    at = 4 * (batch * plan.num_row_blocks + block)
    return Reach(*(reach_ref[at + i] for i in range(4)))


def num_fetched(reach: Int32[Array, "4*B*blocks"], plan: Plan) -> Int32[Array, ""]:
    """Blocks of keys that the widest block of rows goes through; at least one, which writes the results."""
    first, last = fetched(Reach(*reach.reshape(-1, 4).T), plan)
    return (last - first).max() + 1


def fetched(reach: Reach, plan: Plan) -> tuple[Array, Array]:
    """First and last block of keys that a block of rows goes through; the same one twice if it sees nothing."""
    return quotient(reach.low, plan.keys), quotient(jnp.maximum(reach.high - 1, reach.low), plan.keys)


def for_each_tile(reach: Reach, first_key: Index, plan: Plan, body: Callable[[Index, bool], None]) -> None:
    """Calls body(offset, masked) for the tiles of a block of keys that a block of rows reaches.

    Args:
        reach: of the block of rows.
        first_key: of the block of keys.
        plan: sizes.
        body: is called with a tile's offset in the block, and whether scores are to be masked.
    """
    tiles = plan.keys // plan.tile
    begin = quotient(jnp.maximum(reach.low - first_key, 0), plan.tile)
    end = jnp.minimum(quotient(jnp.maximum(reach.high - first_key, 0) + plan.tile - 1, plan.tile), tiles)

    def step(t: Array, carry: None) -> None:
        offset = pl.multiple_of(t * plan.tile, plan.tile)
        key = first_key + offset
        is_whole = (key >= reach.common_low) & (key + plan.tile <= reach.common_high)
        pl.when(is_whole)(lambda: body(offset, False))
        pl.when(jnp.logical_not(is_whole))(lambda: body(offset, True))
        return carry

    jax.lax.fori_loop(begin, end, step, None)


def read_tile(ref: Ref, offset: Index, first_key: Index, plan: Plan, masked: bool) -> Array:
    """Keys or values of a tile, with zeros past the end of the array, where memory holds anything.

    Args:
        ref: a block of keys or values.
        offset: of the tile in the block.
        first_key: of the block.
        plan: sizes.
        masked: whether some query does not see all of the tile.
    """
    x = ref[pl.ds(offset, plan.tile), :]
    if not masked or plan.num_keys % plan.keys == 0:
        return x
    index = first_key + offset + jax.lax.broadcasted_iota(jnp.int32, (plan.tile, 1), 0)
    return jnp.where(index < plan.num_keys, x, jnp.zeros_like(x))


def tile_scores(
    k: Array, q: Array, start: Array, stop: Array, first: Index, plan: Plan, masked: bool
) -> Float[Array, "tile rows"]:
    """Logits to base two of keys from `first` on and rows whose spans are [start, stop).

    Args:
        k, q: keys of the tile, and rows.
        start, stop: edges of the rows' spans.
        first: number of the first key.
        plan: sizes.
        masked: whether some row does not see all keys.
    """
    scores = dot(k, q, (1, 1), plan.precision) * plan.score_scale
    if not masked:
        return scores
    index = first + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    seen = (index >= start) & (index < stop)
    return jnp.where(seen, scores, UNSEEN)


def cost_estimate(plan: Plan, *, products: int, row_arrays: int) -> pl.CostEstimate:
    """What a pass costs if every query sees half of the keys, for the compiler's schedule; what it sees is data.

    Args:
        plan: sizes.
        products: of matrices with one side a key and one side a row.
        row_arrays: arrays of rows x features that are read or written once.
    """
    rows = plan.batch * plan.key_heads * plan.num_row_blocks * plan.rows
    pairs = rows * plan.num_keys // 2
    read_keys = 2 * (pairs // plan.rows) * plan.head_dim
    return pl.CostEstimate(
        flops=2 * products * pairs * plan.head_dim,
        transcendentals=pairs,
        bytes_accessed=(row_arrays * rows * plan.head_dim + read_keys) * plan.itemsize,
    )


def row_specs(plan: Plan) -> tuple[pl.BlockSpec, pl.BlockSpec, pl.BlockSpec]:
    """Blocks, on a grid of (batch, key head, block of rows, block of keys), of edges, matrices and numbers a row."""
    return (
        pl.BlockSpec((None, 1, plan.rows), lambda b, h, i, j, reach: (b, 0, i)),
        matrix_block(plan, lambda b, h, i, j, reach: (b, h, i)),
        pl.BlockSpec((None, None, 1, plan.rows), lambda b, h, i, j, reach: (b, h, 0, i)),
    )


def key_spec(plan: Plan) -> pl.BlockSpec:
    """Blocks of keys or values that a block of rows reaches, on the same grid."""
    return pl.BlockSpec((None, None, plan.keys, plan.head_dim), functools.partial(_key_block, plan))


def cache_spec(plan: Plan) -> pl.BlockSpec:
    """The same of one layer of a cache, whose number stands behind all reaches."""
    layer_at = 4 * plan.batch * plan.num_row_blocks

    def index(b: Index, h: Index, i: Index, j: Index, reach_ref: Ref) -> tuple[Index, ...]:
        return reach_ref[layer_at], *_key_block(plan, b, h, i, j, reach_ref)

    return pl.BlockSpec((None, None, None, plan.keys, plan.head_dim), index)


def _key_block(plan: Plan, b: Index, h: Index, i: Index, j: Index, reach_ref: Ref) -> tuple[Index, ...]:
    first, last = fetched(read_reach(reach_ref, b, i, plan), plan)
    return b, h, jnp.minimum(first + j, last), 0  # staying at the last one fetches nothing
