"""Blocks of queries and keys: what the passes of the GPU kernels have in common (`swjax.attention.gpu`)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int32

from swjax.attention.blockwise import LOG2E, UNSEEN, Index, dot, pad, quotient
from swjax.attention.reach import union
from swjax.streaming import KeySpans

Carry = TypeVar("Carry")

_SMALLEST = 16  # side of a matrix that the tensor cores multiply


@dataclass(frozen=True)
class GPUBlocks:
    """Sizes of blocks for 16-bit numbers, powers of two; of float32, which needs twice the memory, half as many.

    Attributes:
        queries, keys: of one program and one of its steps, forward.
        backward_queries, backward_keys: the same backward; gradients of keys and values have them the other way round.
        programs: as many as keep a GPU busy; with fewer, queries are packed with their heads and keys are divided.
        warps: of each program, 32 threads each.
    """

    queries: int = 128
    keys: int = 64
    backward_queries: int = 64
    backward_keys: int = 64
    programs: int = 128
    warps: int = 4


class Plan(NamedTuple):
    """Static sizes of one call.

    Attributes:
        group: query heads to a key head.
        queries, keys: of a block.
        length, num_keys, width: queries, keys and features of the padded arrays.
        scale: of scores.
        splits: programs among which the keys of one block of queries are divided.
        layers: of the cache that keys and values lie in; None if they are no cache.
    """

    batch: int
    heads: int
    group: int
    queries: int
    keys: int
    length: int
    num_keys: int
    width: int
    scale: float
    precision: jax.lax.Precision
    splits: int = 1
    layers: int | None = None

    @property
    def num_query_blocks(self) -> int:
        """Blocks of queries in a row."""
        return self.length // self.queries


class Operands(NamedTuple):
    """Padded arrays: whole blocks of queries, at least a block of keys, features a power of two.

    Keys and values are [B, S, K, H], or of a cache [layers, B, K, S, H].
    """

    start: Int32[Array, "B T"]
    stop: Int32[Array, "B T"]
    q: Float[Array, "B T N H"]
    k: Float[Array, "*keys"]
    v: Float[Array, "*keys"]


def prepare(
    q: Float[Array, "B T N H"],
    k: Float[Array, "*keys"],
    v: Float[Array, "*keys"],
    spans: KeySpans,
    *,
    queries: int,
    keys: int,
) -> tuple[Plan, Operands]:
    """Sizes and operands for blocks of at most so many queries and keys. Added queries see nothing.

    Args:
        q: queries.
        k, v: keys and values, or a whole cache of them ([layers, B, K, S, H]).
        spans: keys that each query sees.
        queries, keys: of a block, for 16-bit numbers.
    """
    layers = k.shape[0] if k.ndim == 5 else None
    axis, head_axis = (1, 2) if layers is None else (3, 2)
    num_keys, key_heads = k.shape[axis], k.shape[head_axis]
    shrink = q.dtype.itemsize // 2
    queries = min(queries // shrink, max(_SMALLEST, pl.next_power_of_2(q.shape[1])))
    keys = min(keys // shrink, max(_SMALLEST, pl.next_power_of_2(num_keys)))
    start, stop = (pad(jnp.clip(edge.astype(jnp.int32), 0, num_keys), 1, queries) for edge in spans)
    k, v = (pad(pad_width(x), axis, keys) if num_keys < keys else pad_width(x) for x in (k, v))
    operands = Operands(start, stop, pad(pad_width(q), 1, queries), k, v)
    plan = Plan(
        batch=q.shape[0],
        heads=q.shape[2],
        group=q.shape[2] // key_heads,
        queries=queries,
        keys=keys,
        length=operands.q.shape[1],
        num_keys=k.shape[axis],
        width=operands.q.shape[3],
        scale=q.shape[3] ** -0.5,
        # Not the ten bits of mantissa that tensor cores take float32 for.
        precision=jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else jax.lax.Precision.DEFAULT,
        layers=layers,
    )
    return plan, operands


def pad_width(x: Float[Array, "*B H"]) -> Float[Array, "*B W"]:
    """Zeros after the features."""
    width = max(_SMALLEST, pl.next_power_of_2(x.shape[-1]))
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])


def query_specs(plan: Plan) -> tuple[pl.BlockSpec, pl.BlockSpec, pl.BlockSpec]:
    """Blocks, on a grid of (block of queries and split, head, row), of edges, matrices and numbers a query."""
    splits = plan.splits
    return (
        pl.BlockSpec((None, plan.queries), lambda i, n, b: (b, quotient(i, splits))),
        pl.BlockSpec((None, plan.queries, None, plan.width), lambda i, n, b: (b, quotient(i, splits), n, 0)),
        pl.BlockSpec((None, None, plan.queries), lambda i, n, b: (b, n, quotient(i, splits))),
    )


def key_spec(plan: Plan) -> pl.BlockSpec:
    """All keys or values of a head, of all layers of a cache, on the same grid: the kernel reads what it needs."""
    if plan.layers is not None:
        block = plan.layers, None, None, plan.num_keys, plan.width
        return pl.BlockSpec(block, lambda i, n, b: (0, b, quotient(n, plan.group), 0, 0))
    return pl.BlockSpec((None, plan.num_keys, None, plan.width), lambda i, n, b: (b, 0, quotient(n, plan.group), 0))


def block_scores(q: Array, k: Array, seen: Array | None, plan: Plan) -> Float[Array, "queries keys"]:
    """Logits to base two, which is what the hardware raises.

    Args:
        q, k: queries and keys of one head, [queries, width] and [keys, width].
        seen: bool[queries, keys], which query sees which key; None where all see all.
        plan: sizes.

    Returns:
        Float32, `UNSEEN` where a key is not seen.
    """
    scores = dot(q, k, (1, 1), plan.precision) * (plan.scale * LOG2E)
    return scores if seen is None else jnp.where(seen, scores, UNSEEN)


def for_each_block(
    start: Int32[Array, "queries"],
    stop: Int32[Array, "queries"],
    plan: Plan,
    split: Index,
    body: Callable[[Array, Array | None, Carry], Carry],
    carry: Carry,
) -> Carry:
    """Folds body(place, seen, carry) over the blocks of keys that a block of queries reaches.

    Blocks begin where the union of the spans does. The last is moved back to end inside the array; keys that the one
    before has dealt with are masked.

    Args:
        start, stop: edges of the queries' spans.
        plan: sizes.
        split: which part of the blocks, of `plan.splits`.
        body: its place is the first key of a block, and seen, which query sees which key, None where all see all.
        carry: to begin with.
    """
    low, high = union(start, stop, plan.num_keys)
    total = quotient(high - low + plan.keys - 1, plan.keys)
    share = quotient(total + plan.splits - 1, plan.splits)
    begin = jnp.minimum(split * share, total)
    end = jnp.minimum(begin + share, total)
    whole_begin = jnp.clip(quotient(jnp.maximum(jnp.max(start) - low, 0) + plan.keys - 1, plan.keys), begin, end)
    whole_end = jnp.clip(quotient(jnp.maximum(jnp.min(stop) - low, 0), plan.keys), whole_begin, end)

    def masked(i: Index, carry: Carry) -> Carry:
        first = low + i * plan.keys
        place = jnp.minimum(first, plan.num_keys - plan.keys)
        index = place + jnp.arange(plan.keys, dtype=jnp.int32)
        seen = (index[None, :] >= jnp.maximum(start, first)[:, None]) & (index[None, :] < stop[:, None])
        return body(place, seen, carry)

    carry = jax.lax.fori_loop(begin, whole_begin, masked, carry)
    carry = jax.lax.fori_loop(whole_begin, whole_end, lambda i, c: body(low + i * plan.keys, None, c), carry)
    return jax.lax.fori_loop(whole_end, end, masked, carry)
