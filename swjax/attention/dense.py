"""Span attention with all scores of a row at once: what a CPU takes for short rows.

Memory is quadratic in the length, and for a few hundred keys that is quicker than a loop over blocks of them. Rows that
fall apart, as frames of a vision tower do, are cut where no span crosses: a row of 288 patches of which each sees 16
is nine of 32. Whether a batch can be cut is seen from its spans when it runs, so one compiled program serves all of
them.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from swjax.attention.blockwise import UNSEEN
from swjax.attention.kernel import EMPTY_LSE, Kernel
from swjax.attention.reference import reference_kernel
from swjax.streaming import KeySpans

T = TypeVar("T")

SHORTEST_BLOCK = 32
"""Queries of the blocks that rows are cut into, or a few more, as they must divide the row.

Forward and backward of 8 rows of 288 with spans of 16, 4 heads of 32 features over 2, on two cores: 53 ms in one, 7 ms
in blocks of 16, 32 or 48, 11 ms in blocks of 96.
"""


def _forward(
    q: Float[Array, "B T N H"], k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], spans: KeySpans
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    def apart(size: int, q: Array, k: Array, v: Array, spans: KeySpans) -> tuple[Array, Array]:
        out, lse = _attend(_cut(q, size), _cut(k, size), _cut(v, size), _cut_spans(spans, size))
        batch, length, heads = q.shape[:3]
        return out.reshape(q.shape), lse.reshape(batch, -1, heads, size).swapaxes(1, 2).reshape(batch, heads, length)

    return _in_blocks(apart, _attend, q, k, v, spans)


def _backward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    spans: KeySpans,
    out: Float[Array, "B T N H"],
    lse: Float[Array, "B N T"],
    dout: Float[Array, "B T N H"],
) -> tuple[Float[Array, "B T N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    def apart(size: int, q: Array, k: Array, v: Array, spans: KeySpans, *rest: Array) -> Sequence[Array]:
        out, lse, dout = rest
        batch, _, heads = q.shape[:3]
        lses = lse.reshape(batch, heads, -1, size).swapaxes(1, 2).reshape(-1, heads, size)
        q_blocks, k_blocks, v_blocks, outs, douts = (_cut(x, size) for x in (q, k, v, out, dout))
        found = _gradients(q_blocks, k_blocks, v_blocks, _cut_spans(spans, size), outs, lses, douts)
        return tuple(gradient.reshape(x.shape) for gradient, x in zip(found, (q, k, v), strict=True))

    dq, dk, dv = _in_blocks(apart, _gradients, q, k, v, spans, out, lse, dout)
    return dq, dk, dv


def _in_blocks(
    apart: Callable[..., T], whole: Callable[..., T], q: Array, k: Array, v: Array, spans: KeySpans, *rest: Array
) -> T:
    """One pass, with the rows cut into blocks of queries and of the same keys if no span crosses their bounds."""
    length = q.shape[1]
    size = next((size for size in range(SHORTEST_BLOCK, length // 2 + 1) if length % size == 0), None)
    if size is None or k.shape[1] != length:
        return whole(q, k, v, spans, *rest)
    begin = _begin(length, size)
    inside = (spans.start >= spans.stop) | ((spans.start >= begin) & (spans.stop <= begin + size))
    return jax.lax.cond(inside.all(), lambda *args: apart(size, *args), whole, q, k, v, spans, *rest)


def _begin(length: int, size: int) -> Array:
    """int32[T]: the first key of each query's block."""
    return jnp.arange(length, dtype=jnp.int32) // size * size


def _cut(x: Array, size: int) -> Array:
    """[B, T, ...] -> [B * T / size, size, ...]."""
    return x.reshape(-1, size, *x.shape[2:])


def _cut_spans(spans: KeySpans, size: int) -> KeySpans:
    begin = _begin(spans.start.shape[1], size)
    return KeySpans(_cut(spans.start - begin, size), _cut(spans.stop - begin, size))


def _attend(q: Array, k: Array, v: Array, spans: KeySpans) -> tuple[Array, Array]:
    queries, key_heads = _by_key_head(q, k.shape[2]), k.shape[2]
    scores, seen = _scores(queries, k, spans)
    scores = jnp.where(seen, scores, UNSEEN)
    largest = scores.max(axis=-1, keepdims=True)
    weights = jnp.where(seen, jnp.exp(scores - largest), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    is_empty = total == 0
    total = jnp.where(is_empty, 1.0, total)
    rows = weights.astype(v.dtype).reshape(*queries.shape[:3], -1)
    out = jnp.einsum("bkrs,bskh->bkrh", rows, v, preferred_element_type=jnp.float32)
    out = out / total.reshape(*queries.shape[:3], 1)
    lse = jnp.where(is_empty, EMPTY_LSE, largest + jnp.log(total))
    return _by_query(out, q.shape, key_heads).astype(q.dtype), lse.reshape(q.shape[0], q.shape[2], q.shape[1])


def _gradients(
    q: Array, k: Array, v: Array, spans: KeySpans, out: Array, lse: Array, dout: Array
) -> tuple[Array, Array, Array]:
    queries, douts, key_heads = _by_key_head(q, k.shape[2]), _by_key_head(dout, k.shape[2]), k.shape[2]
    scores, seen = _scores(queries, k, spans)
    rows = (*queries.shape[:3], k.shape[1])
    weights = jnp.where(seen, jnp.exp(scores - lse.reshape(*scores.shape[:-1], 1)), 0.0)
    dweights = jnp.einsum("bkrh,bskh->bkrs", douts, v, preferred_element_type=jnp.float32).reshape(scores.shape)
    inner = (dout.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1).swapaxes(1, 2)
    dscores = weights * (dweights - inner.reshape(*scores.shape[:-1], 1)) * q.shape[-1] ** -0.5
    dscores, weights = dscores.astype(q.dtype).reshape(rows), weights.astype(dout.dtype).reshape(rows)
    dq = jnp.einsum("bkrs,bskh->bkrh", dscores, k, preferred_element_type=jnp.float32)
    dk = jnp.einsum("bkrs,bkrh->bskh", dscores, queries, preferred_element_type=jnp.float32)
    dv = jnp.einsum("bkrs,bkrh->bskh", weights, douts, preferred_element_type=jnp.float32)
    return _by_query(dq, q.shape, key_heads).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


def _scores(
    queries: Float[Array, "B K R H"], k: Float[Array, "B S K H"], spans: KeySpans
) -> tuple[Float[Array, "B K P T S"], Bool[Array, "B 1 1 T S"]]:
    """Scaled scores in float32, and which keys each query sees; P = N/K queries share a key head, and R is (P, T)."""
    batch, key_heads, _, width = queries.shape
    keys = jnp.arange(k.shape[1], dtype=jnp.int32)
    seen = ((keys >= spans.start[..., None]) & (keys < spans.stop[..., None]))[:, None, None]
    scores = jnp.einsum("bkrh,bskh->bkrs", queries, k, preferred_element_type=jnp.float32)
    return scores.reshape(batch, key_heads, -1, *seen.shape[3:]) * width**-0.5, seen


def _by_key_head(x: Float[Array, "B T N H"], key_heads: int) -> Float[Array, "B K R H"]:
    """Queries that share a key head one after another, so that products are of plain matrices."""
    batch, length, heads, width = x.shape
    split = x.reshape(batch, length, key_heads, heads // key_heads, width).transpose(0, 2, 3, 1, 4)
    return split.reshape(batch, key_heads, -1, width)


def _by_query(x: Float[Array, "B K R H"], shape: tuple[int, ...], key_heads: int) -> Float[Array, "B T N H"]:
    batch, length, heads, width = shape
    split = x.reshape(batch, key_heads, heads // key_heads, length, width)
    return split.transpose(0, 3, 1, 2, 4).reshape(shape)


dense_kernel = Kernel(_forward, _backward, reference_kernel.cache)
