"""Span attention on NVIDIA GPUs: Pallas kernels, by way of Triton, that compute only the keys that spans reach.

One program goes through the union of the spans of a block of queries of one head, starting where it starts; blocks of
keys that all queries see whole are not masked. For gradients of keys and values, one program goes through a list of
the blocks of queries that touch its keys, for each head of the group. Where queries are too few to keep a GPU busy,
they are packed with the heads of their group, and the keys are divided over several programs, whose results are merged.

The last block of keys may go up to a block beyond the union: what is stored there is not seen, but must be finite. (To
hide it inside of the kernel costs a third of its speed on an H200.) Sizes of blocks are those that such kernels
commonly take; benchmarks/RESULTS.md has what they reach.

JAX deprecates the Triton backend of Pallas from 0.11 on. What follows is `swjax.attention.mosaic`, for Hopper; these
kernels stay what `auto` takes until its backward pass has been measured, and for other GPUs.

Why not Tokamax (0.0.12), whose attention takes one range of keys a query: its function for users has no such argument,
and on Hopper its backward pass goes through all keys, whatever the ranges. Why not cuDNN: it has no mask of this kind,
and is slow with one that is an array.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Ref
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int32

from swjax.attention.blockwise import FIRST_MAXIMUM, LOG2E, dot, quotient
from swjax.attention.gpu_backward import backward
from swjax.attention.gpu_blocks import (
    GPUBlocks,
    Operands,
    Plan,
    block_scores,
    for_each_block,
    key_spec,
    prepare,
    query_specs,
)
from swjax.attention.kernel import EMPTY_LSE, Kernel
from swjax.attention.packing import NO_KEYS, merge, pack, unpack
from swjax.streaming import KeySpans


def _forward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "*keys"],
    v: Float[Array, "*keys"],
    spans: KeySpans,
    *,
    layer: Int32[Array, ""] | None = None,
    blocks: GPUBlocks,
    interpret: bool,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Keys and values are [B, S, K, H], or with `layer` a cache, [layers, B, K, S, H]."""
    batch, length, heads, width = q.shape
    key_heads = k.shape[2]
    group = heads // key_heads
    plan, operands = prepare(q, k, v, spans, queries=blocks.queries, keys=blocks.keys)
    if batch * heads * plan.num_query_blocks >= blocks.programs:
        out, lse = _attend(plan, operands, layer, blocks, interpret)
        return out[0, :, :length, :, :width], lse[0, :, :, :length]
    rows, spans = pack(q, spans, key_heads)
    plan, operands = prepare(rows, k, v, spans, queries=blocks.queries, keys=blocks.keys)
    programs = batch * key_heads * plan.num_query_blocks
    splits = min(pl.cdiv(blocks.programs, programs), pl.cdiv(plan.num_keys, 4 * plan.keys))
    out, lse = merge(*_attend(plan._replace(splits=splits), operands, layer, blocks, interpret))
    out, lse = unpack(out[:, : length * group, :, :width], lse[:, :, : length * group], length)
    return out.astype(q.dtype), lse


def _attend(
    plan: Plan, operands: Operands, layer: Int32[Array, ""] | None, blocks: GPUBlocks, interpret: bool
) -> tuple[Float[Array, "splits B T N H"], Float[Array, "splits B N T"]]:
    """Attention to each part of the keys; in float32 if there are several."""
    q = operands.q
    edge, matrix, _ = query_specs(plan)
    keys = key_spec(plan)
    splits = plan.splits
    out_shapes = (
        jax.ShapeDtypeStruct((splits, *q.shape), q.dtype if splits == 1 else jnp.float32),
        jax.ShapeDtypeStruct((splits, plan.batch, plan.heads, plan.length), jnp.float32),
    )
    out_specs = (
        pl.BlockSpec(
            (None, None, plan.queries, None, plan.width),
            lambda i, n, b: (jax.lax.rem(i, jnp.int32(splits)), b, quotient(i, splits), n, 0),
        ),
        pl.BlockSpec(
            (None, None, None, plan.queries),
            lambda i, n, b: (jax.lax.rem(i, jnp.int32(splits)), b, n, quotient(i, splits)),
        ),
    )
    number = [] if layer is None else [pl.BlockSpec((1,), lambda i, n, b: (0,))]
    return pl.pallas_call(
        functools.partial(_forward_body if layer is None else _cache_body, plan=plan),
        out_shape=out_shapes,
        grid=(plan.num_query_blocks * splits, plan.heads, plan.batch),
        in_specs=[*number, edge, edge, matrix, keys, keys],
        out_specs=out_specs,
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=2),
        interpret=interpret,
        name="span_attention_forward",
    )(*([] if layer is None else [layer.reshape(1)]), *operands)


def _cache_body(layer_ref: Ref, *refs: Ref, plan: Plan) -> None:
    _forward_body(*refs, plan=plan, layer=layer_ref[0])


def _forward_body(
    start_ref: Ref,
    stop_ref: Ref,
    q_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    out_ref: Ref,
    lse_ref: Ref,
    *,
    plan: Plan,
    layer: Array | int | None = None,
) -> None:
    q, start, stop = q_ref[...], start_ref[...], stop_ref[...]

    def attend_block(
        place: Array | int, seen: Array | None, carry: tuple[Array, Array, Array]
    ) -> tuple[Array, Array, Array]:
        largest, total, sums = carry
        at = pl.ds(place, plan.keys), slice(None)
        k, v = (ref[at if layer is None else (layer, *at)] for ref in (k_ref, v_ref))
        scores = block_scores(q, k, seen, plan)
        new_largest = jnp.maximum(largest, scores.max(axis=1))
        weights = jnp.exp2(scores - new_largest[:, None])
        shrink = jnp.exp2(largest - new_largest)
        sums = sums * shrink[:, None] + dot(weights.astype(v.dtype), v, (1, 0), plan.precision)
        return new_largest, total * shrink + weights.sum(axis=1), sums

    nothing = (
        jnp.full((plan.queries,), FIRST_MAXIMUM, jnp.float32),
        jnp.zeros((plan.queries,), jnp.float32),
        jnp.zeros((plan.queries, plan.width), jnp.float32),
    )
    split = jax.lax.rem(pl.program_id(0), jnp.int32(plan.splits))
    largest, total, sums = for_each_block(start, stop, plan, split, attend_block, nothing)
    is_empty = total == 0
    total = jnp.where(is_empty, 1.0, total)
    out_ref[...] = (sums / total[:, None]).astype(out_ref.dtype)
    empty_lse = EMPTY_LSE if plan.splits == 1 else NO_KEYS
    lse_ref[...] = jnp.where(is_empty, empty_lse, (largest + jnp.log2(total)) / LOG2E)


@functools.cache
def make_gpu_kernel(blocks: GPUBlocks, *, interpret: bool = False) -> Kernel:
    """The kernels with blocks of a given size.

    Args:
        blocks: sizes of blocks.
        interpret: run them as plain JAX on any platform, slowly, for tests.
    """
    forward_pass, backward_pass = (
        jax.jit(functools.partial(one, blocks=blocks, interpret=interpret)) for one in (_forward, backward)
    )
    forward = functools.partial(_forward, blocks=blocks, interpret=interpret)
    cache = jax.jit(lambda q, keys, values, layer, spans: forward(q, keys, values, spans, layer=layer)[0])
    return Kernel(forward_pass, backward_pass, cache, platforms=() if interpret else ("cuda",))


gpu_kernel = make_gpu_kernel(GPUBlocks())
