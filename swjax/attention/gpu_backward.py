"""The backward pass of span attention on NVIDIA GPUs: one kernel for queries, one for keys and values."""

import functools

import jax
import jax.numpy as jnp
from jax import Ref
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from swjax.attention.blockwise import LOG2E, dot, pad
from swjax.attention.gpu_blocks import (
    GPUBlocks,
    Operands,
    Plan,
    block_scores,
    for_each_block,
    key_spec,
    pad_width,
    prepare,
    query_specs,
)
from swjax.attention.reach import touching_blocks, union
from swjax.streaming import KeySpans


def backward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    spans: KeySpans,
    out: Float[Array, "B T N H"],
    lse: Float[Array, "B N T"],
    dout: Float[Array, "B T N H"],
    *,
    blocks: GPUBlocks,
    interpret: bool,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """The backward pass, as `swjax.attention.kernel.Kernel` describes it.

    Args:
        q, k, v: inputs of the forward pass.
        spans: int32[B, T] each, the keys that each query sees.
        out, lse: results of the forward pass.
        dout: gradient of `out`, which is cast to the dtype of q.
        blocks: sizes of blocks; those of the backward pass and the warps are used.
        interpret: run the kernels as plain JAX on any platform, slowly, for tests.
    """
    length, width, num_keys = q.shape[1], q.shape[3], k.shape[1]
    plan, operands = prepare(q, k, v, spans, queries=blocks.backward_queries, keys=blocks.backward_keys)
    # The softmax's derivative needs the sum of weight x dweight over the keys, which is that of out x dout.
    along = (out.astype(jnp.float32) * dout.astype(jnp.float32)).sum(axis=-1)
    by_query = (
        pad(pad_width(dout.astype(q.dtype)), 1, plan.queries),
        pad(lse.swapaxes(1, 2) * LOG2E, 1, plan.queries).swapaxes(1, 2),
        pad(along, 1, plan.queries).swapaxes(1, 2),
    )
    dq = _query_gradient(plan, operands, by_query, blocks, interpret)
    dk, dv = _key_gradients(plan, operands, by_query, blocks, interpret)
    return dq[:, :length, :, :width], dk[:, :num_keys, :, :width], dv[:, :num_keys, :, :width]


def _query_gradient(
    plan: Plan, operands: Operands, by_query: tuple[Array, ...], blocks: GPUBlocks, interpret: bool
) -> Float[Array, "B T N H"]:
    edge, matrix, number = query_specs(plan)
    keys = key_spec(plan)
    return pl.pallas_call(
        functools.partial(_query_gradient_body, plan=plan),
        out_shape=jax.ShapeDtypeStruct(operands.q.shape, operands.q.dtype),
        grid=(plan.num_query_blocks, plan.heads, plan.batch),
        in_specs=[edge, edge, matrix, keys, keys, matrix, number, number],
        out_specs=matrix,
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=2),
        interpret=interpret,
        name="span_attention_query_gradient",
    )(*operands, *by_query)


def _query_gradient_body(
    start_ref: Ref,
    stop_ref: Ref,
    q_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    dout_ref: Ref,
    lse_ref: Ref,
    along_ref: Ref,
    dq_ref: Ref,
    *,
    plan: Plan,
) -> None:
    q, dout, lse, along = q_ref[...], dout_ref[...], lse_ref[...], along_ref[...]

    def add_block(place: Array | int, seen: Array | None, dq: Array) -> Array:
        k, v = (ref[pl.ds(place, plan.keys), :] for ref in (k_ref, v_ref))
        weights = jnp.exp2(block_scores(q, k, seen, plan) - lse[:, None])
        dscores = weights * (dot(dout, v, (1, 1), plan.precision) - along[:, None])
        return dq + dot(dscores.astype(k.dtype), k, (1, 0), plan.precision)

    nothing = jnp.zeros((plan.queries, plan.width), jnp.float32)
    dq = for_each_block(start_ref[...], stop_ref[...], plan, 0, add_block, nothing)
    dq_ref[...] = (dq * plan.scale).astype(dq_ref.dtype)


def _key_gradients(
    plan: Plan, operands: Operands, by_query: tuple[Array, ...], blocks: GPUBlocks, interpret: bool
) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    start, stop, q, k, v = operands
    k, v = (pad(x, 1, plan.keys) for x in (k, v))
    first, last = (edge.reshape(plan.batch, -1, plan.queries) for edge in (start, stop))
    low, high = union(first, last, plan.num_keys)
    counts, touching = touching_blocks(low, high, width=plan.keys, num_keys=k.shape[1])

    # On a grid of (block of keys, key head, row).
    keys = pl.BlockSpec((None, plan.keys, None, plan.width), lambda j, h, b: (b, j, h, 0))
    edges = pl.BlockSpec((None, plan.length), lambda j, h, b: (b, 0))
    matrices = pl.BlockSpec((None, plan.length, plan.group, plan.width), lambda j, h, b: (b, 0, h, 0))
    numbers = pl.BlockSpec((None, plan.group, plan.length), lambda j, h, b: (b, h, 0))
    return pl.pallas_call(
        functools.partial(_key_gradients_body, plan=plan),
        out_shape=(jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)),
        grid=(k.shape[1] // plan.keys, k.shape[2], plan.batch),
        in_specs=[
            pl.BlockSpec((None, None), lambda j, h, b: (b, j)),
            pl.BlockSpec((None, None, plan.num_query_blocks), lambda j, h, b: (b, j, 0)),
            *(edges, edges, matrices, keys, keys, matrices, numbers, numbers),
        ],
        out_specs=(keys, keys),
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=2),
        interpret=interpret,
        name="span_attention_key_gradients",
    )(counts, touching, start, stop, q, k, v, *by_query)


def _key_gradients_body(
    count_ref: Ref,
    touching_ref: Ref,
    start_ref: Ref,
    stop_ref: Ref,
    q_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    dout_ref: Ref,
    lse_ref: Ref,
    along_ref: Ref,
    dk_ref: Ref,
    dv_ref: Ref,
    *,
    plan: Plan,
) -> None:
    k, v, count = k_ref[...], v_ref[...], count_ref[...]
    index = pl.program_id(0) * plan.keys + jnp.arange(plan.keys, dtype=jnp.int32)

    def add_block(head: Array | int, i: Array | int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        dk, dv = carry
        rows = pl.ds(touching_ref[i] * plan.queries, plan.queries)
        q, dout = (ref[rows, head, :] for ref in (q_ref, dout_ref))
        seen = (index[None, :] >= start_ref[rows][:, None]) & (index[None, :] < stop_ref[rows][:, None])
        weights = jnp.exp2(block_scores(q, k, seen, plan) - lse_ref[head, rows][:, None])
        dv = dv + dot(weights.astype(dout.dtype), dout, (0, 0), plan.precision)
        dscores = weights * (dot(dout, v, (1, 1), plan.precision) - along_ref[head, rows][:, None])
        return dk + dot(dscores.astype(q.dtype), q, (0, 0), plan.precision), dv

    def add_head(head: Array | int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return jax.lax.fori_loop(0, count, functools.partial(add_block, head), carry)

    nothing = jnp.zeros((plan.keys, plan.width), jnp.float32)
    dk, dv = jax.lax.fori_loop(0, plan.group, add_head, (nothing, nothing))
    dk_ref[...] = (dk * plan.scale).astype(dk_ref.dtype)
    dv_ref[...] = dv.astype(dv_ref.dtype)
