"""Span attention block by block in plain JAX: memory linear in length, and no work on keys that nobody sees.

A block of queries goes through the union of its spans in blocks of keys, with an online softmax (Milakov and
Gimelshein, 2018; Rabe and Staats, 2021; Dao et al., 2022). The backward pass computes the scores again from the log of
the softmax's denominator. Both are loops whose bounds come from the spans, so one compiled program serves every batch,
windows cost what a window costs, and a few queries against a long cache cost their spans and not its capacity. Such
loops have no automatic derivative, nor need one: `swjax.attention.kernel` differentiates.

Blocks of keys start where the union starts, not at multiples of their size, so nothing is padded and short spans touch
few keys. The last one is moved back to end inside the array; keys that an earlier one has dealt with are masked.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from swjax.attention.blockwise import UNSEEN
from swjax.attention.kernel import EMPTY_LSE, Kernel
from swjax.streaming import KeySpans

QUERY_BLOCK = KEY_BLOCK = 256
"""Largest blocks. On two cores nothing from 128 to 512 was quicker over 4 heads of 32 and 28 heads of 128 features."""

CACHE_SCORES = 1 << 17
"""Scores a head up to which few queries take longer blocks of a cache."""


class _Block(NamedTuple):
    """One block of the queries of one row; P = N/K queries share each key head, and rows are (P, queries).

    Attributes:
        row: index of the batch row.
        q: [K, P * block, H].
        start, stop: int32[P * block].
        low, high: int32[], union of the spans.
    """

    row: Int32[Array, ""]
    q: Float[Array, "K R H"]
    start: Int32[Array, "R"]
    stop: Int32[Array, "R"]
    low: Int32[Array, ""]
    high: Int32[Array, ""]


def _forward(
    q: Float[Array, "B T N H"], k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], spans: KeySpans
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    length, key_heads = q.shape[1], k.shape[2]
    block = _query_block(length)
    size = min(KEY_BLOCK, k.shape[1])

    def attend(queries: _Block) -> tuple[Float[Array, "K R H"], Float[Array, "K R"]]:
        def read(i: Int32[Array, ""]) -> tuple[Array, Array, Bool[Array, "R C"]]:
            return _key_block(queries, k, v, i)[:3]

        return _attend_block(queries, "skh", read, _num_key_blocks(queries, size))

    outs, lses = jax.lax.map(attend, _blocks(q, spans, key_heads, block))
    out = _from_blocks(outs, q.shape, block).astype(q.dtype)
    return out, _from_blocks(lses[..., None], (*q.shape[:3], 1), block)[..., 0].transpose(0, 2, 1)


def _attend_block(
    block: _Block, axes: str, read: Callable[[Array], tuple[Array, Array, Array]], num_key_blocks: Int32[Array, ""]
) -> tuple[Float[Array, "K R H"], Float[Array, "K R"]]:
    """Attention of one block of queries, in float32.

    Args:
        block: the queries.
        axes: of a block of keys: `skh` or `ksh`.
        read: number of a block of keys -> the keys, the values, and which query sees which.
        num_key_blocks: how many of them there are.
    """

    def step(i: Int32[Array, ""], carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        largest, total, sums = carry
        keys, values, seen = read(i)
        scores = jnp.where(seen, _scores(block.q, keys, axes), UNSEEN)
        new_largest = jnp.maximum(largest, scores.max(axis=-1))
        weights = jnp.where(seen, jnp.exp(scores - new_largest[..., None]), 0.0)
        shrink = jnp.exp(largest - new_largest)
        added = jnp.einsum(f"krs,{axes}->krh", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        return new_largest, total * shrink + weights.sum(axis=-1), sums * shrink[..., None] + added

    rows = block.q.shape[:2]
    nothing = jnp.full(rows, UNSEEN), jnp.zeros(rows), jnp.zeros(block.q.shape)
    largest, total, sums = jax.lax.fori_loop(0, num_key_blocks, step, nothing)
    is_empty = total == 0
    total = jnp.where(is_empty, 1.0, total)
    return sums / total[..., None], jnp.where(is_empty, EMPTY_LSE, largest + jnp.log(total))


def _cache(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "layers B K S H"],
    values: Float[Array, "layers B K S H"],
    layer: Int32[Array, ""],
    spans: KeySpans,
) -> Float[Array, "B T N H"]:
    """Attention to one layer of a cache, which is read where it lies (`swjax.attention.cache_attention`)."""
    length, (key_heads, slots, width) = q.shape[1], keys.shape[2:]
    block = _query_block(length)
    # Few queries go through longer blocks of keys, so that one is worth its while.
    rows = block * (q.shape[2] // key_heads)
    size = min(max(KEY_BLOCK, min(CACHE_SCORES // rows, 8 * KEY_BLOCK)), slots)

    def attend(queries: _Block) -> Float[Array, "K R H"]:
        def read(i: Int32[Array, ""]) -> tuple[Array, Array, Bool[Array, "R C"]]:
            place, seen = _place_keys(queries, i, size, slots)
            where, shape = (layer, queries.row, 0, place, 0), (1, 1, key_heads, size, width)
            k, v = (jax.lax.dynamic_slice(x, where, shape)[0, 0] for x in (keys, values))
            return k, v, seen

        return _attend_block(queries, "ksh", read, _num_key_blocks(queries, size))[0]

    blocks = _blocks(q, spans, key_heads, block)
    outs = attend(jax.tree.map(lambda x: x[0], blocks))[None] if len(blocks.row) == 1 else jax.lax.map(attend, blocks)
    return _from_blocks(outs, q.shape, block).astype(q.dtype)


def _backward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    spans: KeySpans,
    out: Float[Array, "B T N H"],
    lse: Float[Array, "B N T"],
    dout: Float[Array, "B T N H"],
) -> tuple[Float[Array, "B T N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    length, key_heads = q.shape[1], k.shape[2]
    block = _query_block(length)
    # The softmax's derivative needs the sum of weight x dweight over the keys, which is that of out x dout.
    along = (out.astype(jnp.float32) * dout.astype(jnp.float32)).sum(axis=-1)

    def step(
        carry: tuple[Array, Array], blocks: tuple[_Block, Array, Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        queries, dout, lse, along = blocks
        dq, dk, dv = _backward_block(queries, dout, lse[..., 0], along[..., 0], k, v, *carry)
        return (dk, dv), dq

    blocks = (
        _blocks(q, spans, key_heads, block),
        _to_blocks(dout, key_heads, block),
        _to_blocks(lse.transpose(0, 2, 1)[..., None], key_heads, block),
        _to_blocks(along[..., None], key_heads, block),
    )
    nothing = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    (dk, dv), dqs = jax.lax.scan(step, nothing, blocks)
    return _from_blocks(dqs, q.shape, block).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


def _backward_block(
    block: _Block,
    dout: Float[Array, "K R H"],
    lse: Float[Array, "K R"],
    along: Float[Array, "K R"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    dk: Float[Array, "B S K H"],
    dv: Float[Array, "B S K H"],
) -> tuple[Float[Array, "K R H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """Gradient of one block of queries, and what it adds to those of the keys and values it sees."""
    scale = block.q.shape[-1] ** -0.5

    def step(i: Int32[Array, ""], carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        dq, dk, dv = carry
        keys, values, seen, place = _key_block(block, k, v, i)
        weights = jnp.where(seen, jnp.exp(_scores(block.q, keys, "skh") - lse[..., None]), 0.0)
        dweights = jnp.einsum("krh,skh->krs", dout, values, preferred_element_type=jnp.float32)
        dscores = (weights * (dweights - along[..., None]) * scale).astype(k.dtype)
        dq = dq + jnp.einsum("krs,skh->krh", dscores, keys, preferred_element_type=jnp.float32)
        added_k = jnp.einsum("krs,krh->skh", dscores, block.q, preferred_element_type=jnp.float32)
        added_v = jnp.einsum("krs,krh->skh", weights.astype(v.dtype), dout, preferred_element_type=jnp.float32)
        return dq, _add_at(dk, block.row, place, added_k), _add_at(dv, block.row, place, added_v)

    num_key_blocks = _num_key_blocks(block, min(KEY_BLOCK, k.shape[1]))
    return jax.lax.fori_loop(0, num_key_blocks, step, (jnp.zeros(block.q.shape), dk, dv))


def _query_block(length: int) -> int:
    """The size at which the fewest blocks hold all queries with the least padding."""
    return -(-length // -(-length // QUERY_BLOCK))


def _scores(q: Float[Array, "K R H"], keys: Float[Array, "*C"], axes: str) -> Float[Array, "K R C"]:
    return jnp.einsum(f"krh,{axes}->krs", q, keys, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5


def _num_key_blocks(block: _Block, size: int) -> Int32[Array, ""]:
    return jnp.maximum(block.high - block.low + size - 1, 0) // size


def _key_block(
    block: _Block, k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], i: Int32[Array, ""]
) -> tuple[Float[Array, "C K H"], Float[Array, "C K H"], Bool[Array, "R C"], Int32[Array, ""]]:
    """Block i of the keys and values that a block of queries sees, which query sees which, and where it begins."""
    size = min(KEY_BLOCK, k.shape[1])
    place, seen = _place_keys(block, i, size, k.shape[1])
    keys, values = (jax.lax.dynamic_slice(x, (block.row, place, 0, 0), (1, size, *x.shape[2:]))[0] for x in (k, v))
    return keys, values, seen, place


def _place_keys(
    block: _Block, i: Int32[Array, ""], size: int, num_keys: int
) -> tuple[Int32[Array, ""], Bool[Array, "R C"]]:
    """Where block i of the keys that a block of queries sees begins, and which query sees which."""
    first = block.low + i * size
    place = jnp.minimum(first, num_keys - size)
    index = place + jnp.arange(size, dtype=jnp.int32)
    return place, (index >= jnp.maximum(block.start, first)[:, None]) & (index < block.stop[:, None])


def _add_at(
    total: Float[Array, "B S K H"], row: Int32[Array, ""], place: Int32[Array, ""], added: Float[Array, "C K H"]
) -> Float[Array, "B S K H"]:
    where = (row, place, 0, 0)
    old = jax.lax.dynamic_slice(total, where, (1, *added.shape))
    return jax.lax.dynamic_update_slice(total, old + added, where)


def _blocks(q: Float[Array, "B T N H"], spans: KeySpans, key_heads: int, block: int) -> _Block:
    """All blocks of queries, stacked: those of the first row first."""
    batch, length, heads, _ = q.shape
    missing = -length % block
    # A padded query has an empty span.
    start, stop = (jnp.pad(edge, ((0, 0), (0, missing))).reshape(-1, block) for edge in (spans.start, spans.stop))
    is_empty = start >= stop
    low = jnp.where(is_empty, jnp.iinfo(jnp.int32).max, start).min(axis=1)
    high = jnp.where(is_empty, 0, stop).max(axis=1)
    low = jnp.minimum(low, high)
    rows = jnp.repeat(jnp.arange(batch, dtype=jnp.int32), (length + missing) // block)
    start, stop = (jnp.tile(edge, (1, heads // key_heads)) for edge in (start, stop))
    return _Block(rows, _to_blocks(q, key_heads, block), start, stop, low, high)


def _to_blocks(x: Float[Array, "B T N X"], key_heads: int, block: int) -> Float[Array, "blocks K R X"]:
    """Queries (or whatever each of them has) cut into blocks, with those that share a key head one after another."""
    _, length, heads, width = x.shape
    x = jnp.pad(x, ((0, 0), (0, -length % block), (0, 0), (0, 0)))
    x = x.reshape(-1, block, key_heads, heads // key_heads, width).transpose(0, 2, 3, 1, 4)
    return x.reshape(x.shape[0], key_heads, -1, width)


def _from_blocks(blocks: Float[Array, "blocks K R X"], shape: tuple[int, ...], block: int) -> Float[Array, "B T N X"]:
    """The inverse of `_to_blocks`."""
    batch, length, heads, width = shape
    key_heads = blocks.shape[1]
    x = blocks.reshape(-1, key_heads, heads // key_heads, block, width).transpose(0, 3, 1, 2, 4)
    return x.reshape(batch, -1, heads, width)[:, :length]


chunked_kernel = Kernel(jax.jit(_forward), jax.jit(_backward), jax.jit(_cache))
