"""The backward pass of span attention on TPU.

One kernel computes scores again from the log of the softmax's denominator, and all gradients from them. Blocks of rows
go through their keys as in the forward pass; sums for all keys of a head stay in the chip's scratch memory until the
last block of rows. Over rows that are too long for that, there is a kernel for queries and one for keys and values
(`swjax.attention.tpu_long_backward`). Gradients of keys and values are sums over the rows of a group, so heads that
share a key are summed in the kernel.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Ref
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from swjax.attention.blockwise import LOG2E, Index, dot
from swjax.attention.tpu_blocks import (
    LANES,
    Plan,
    TPUBlocks,
    cost_estimate,
    fetched,
    for_each_tile,
    from_blocks,
    key_spec,
    make_plan,
    num_fetched,
    read_reach,
    read_rows,
    read_tile,
    row_spans,
    row_specs,
    tile_scores,
    to_blocks,
    to_rows,
    write_rows,
)
from swjax.attention.tpu_long_backward import key_gradients, query_gradient
from swjax.compiler import HEADS_OUTERMOST, in_order
from swjax.streaming import KeySpans

_OTHER_BYTES = 16 * 1024**2
"""For all else that the kernel holds, which is the compiler's default for a whole kernel."""


def backward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    spans: KeySpans,
    out: Float[Array, "B T N H"],
    lse: Float[Array, "B N T"],
    dout: Float[Array, "B T N H"],
    *,
    blocks: TPUBlocks,
    interpret: bool,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """The backward pass, as `swjax.attention.kernel.Kernel` describes it.

    Args:
        q, k, v: inputs of the forward pass.
        spans: int32[B, T] each, the keys that each query sees.
        out, lse: results of the forward pass.
        dout: gradient of `out`, which is cast to the dtype of q.
        blocks: sizes of blocks; `forward_rows` and `chunk` are not used.
        interpret: run the kernels as plain JAX on any platform, slowly, for tests.
    """
    num_keys, key_heads = k.shape[1:3]
    plan = make_plan(q, key_heads, num_keys, blocks, rows=blocks.rows, keys=blocks.keys)
    rows = row_spans(spans, plan)
    dout = in_order(dout, HEADS_OUTERMOST)
    # The softmax's derivative needs the sum of weight x dweight over the keys, which is that of out x dout.
    along = (out.astype(jnp.float32) * dout.astype(jnp.float32)).sum(axis=-1)
    operands = (
        rows.start,
        rows.stop,
        to_blocks(q, plan),
        to_blocks(dout.astype(q.dtype), plan),
        to_rows(lse.swapaxes(1, 2)[..., None] * LOG2E, plan).swapaxes(2, 3),
        to_rows(along[..., None], plan).swapaxes(2, 3),
        k.transpose(0, 2, 1, 3),
        v.transpose(0, 2, 1, 3),
    )
    if _key_bytes(plan) <= blocks.key_bytes:
        dq, dk, dv = _gradients(rows.reach, operands, plan, interpret=interpret)
    else:
        by_keys = make_plan(q, key_heads, num_keys, blocks, rows=blocks.rows, keys=blocks.backward_keys)
        dq = query_gradient(rows.reach, operands, plan, interpret=interpret)
        dk, dv = key_gradients(rows.reach, operands, by_keys, interpret=interpret)
    return from_blocks(dq, plan), dk.transpose(0, 2, 1, 3), dv.transpose(0, 2, 1, 3)


def _key_bytes(plan: Plan) -> int:
    """Bytes that the gradients of all keys and values of a head take: sums in float32, and results on their way out."""
    lanes = pl.cdiv(plan.head_dim, LANES) * LANES
    return 2 * plan.num_key_blocks * plan.keys * lanes * (4 + 2 * plan.itemsize)


def _gradients(
    reach: Int32[Array, "4*B*blocks"], operands: tuple[Array, ...], plan: Plan, *, interpret: bool
) -> tuple[Float[Array, "B K g L H"], Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    q_blocks, k = operands[2], operands[-1]
    filled = jax.ShapeDtypeStruct((*k.shape[:2], plan.num_key_blocks * plan.keys, plan.head_dim), k.dtype)
    edge, matrix, number = row_specs(plan)
    keys = key_spec(plan)
    all_keys = pl.BlockSpec((None, None, *filled.shape[2:]), lambda b, h, i, j, reach: (b, h, 0, 0))
    dq, dk, dv = pl.pallas_call(
        functools.partial(_gradients_body, plan=plan),
        out_shape=(jax.ShapeDtypeStruct(q_blocks.shape, q_blocks.dtype), filled, filled),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(plan.batch, plan.key_heads, plan.num_row_blocks, num_fetched(reach, plan)),
            in_specs=[edge, edge, matrix, matrix, number, number, keys, keys],
            out_specs=[matrix, all_keys, all_keys],
            scratch_shapes=[
                pltpu.VMEM((plan.head_dim, plan.rows), jnp.float32),
                *[pltpu.VMEM(filled.shape[2:], jnp.float32)] * 2,
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=_key_bytes(plan) + _OTHER_BYTES,
        ),
        cost_estimate=cost_estimate(plan, products=5, row_arrays=3),
        interpret=interpret,
        name="span_attention_gradients",
    )(reach, *operands)
    return dq, dk[:, :, : plan.num_keys], dv[:, :, : plan.num_keys]


def _gradients_body(
    reach_ref: Ref,
    start_ref: Ref,
    stop_ref: Ref,
    q_ref: Ref,
    dout_ref: Ref,
    lse_ref: Ref,
    along_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    dq_ref: Ref,
    dk_ref: Ref,
    dv_ref: Ref,
    dq_sums_ref: Ref,
    dk_sums_ref: Ref,
    dv_sums_ref: Ref,
    *,
    plan: Plan,
) -> None:
    batch, _, block, step = (pl.program_id(axis) for axis in range(4))
    reach = read_reach(reach_ref, batch, block, plan)
    first_key = (fetched(reach, plan)[0] + step) * plan.keys

    def clear(keys: slice | pl.Slice) -> None:
        dk_sums_ref[keys, :] = jnp.zeros((plan.keys, plan.head_dim), jnp.float32)
        dv_sums_ref[keys, :] = jnp.zeros((plan.keys, plan.head_dim), jnp.float32)

    def write(keys: slice | pl.Slice) -> None:
        dk_ref[keys, :] = (dk_sums_ref[keys, :] * plan.head_dim**-0.5).astype(dk_ref.dtype)
        dv_ref[keys, :] = dv_sums_ref[keys, :].astype(dv_ref.dtype)

    def for_all_keys(body: Callable[[slice | pl.Slice], None]) -> None:
        def step(i: Array, carry: None) -> None:
            body(pl.ds(pl.multiple_of(i * plan.keys, plan.keys), plan.keys))

        jax.lax.fori_loop(0, plan.num_key_blocks, step, None)

    @pl.when((block == 0) & (step == 0))
    def _begin_keys() -> None:
        for_all_keys(clear)

    @pl.when(step == 0)
    def _begin_rows() -> None:
        dq_sums_ref[...] = jnp.zeros_like(dq_sums_ref)

    def add_tile(offset: Index, masked: bool) -> None:
        tile = pl.ds(first_key + offset, plan.tile)
        k, v = (read_tile(ref, offset, first_key, plan, masked) for ref in (k_ref, v_ref))
        q, dout = read_rows(q_ref, plan), read_rows(dout_ref, plan)
        scores = tile_scores(k, q, start_ref[...], stop_ref[...], first_key + offset, plan, masked)
        weights = jnp.exp2(scores - lse_ref[...])
        dv_sums_ref[tile, :] += dot(weights.astype(dout.dtype), dout, (1, 0), plan.precision)
        dscores = (weights * (dot(v, dout, (1, 1), plan.precision) - along_ref[...])).astype(q.dtype)
        dk_sums_ref[tile, :] += dot(dscores, q, (1, 0), plan.precision)
        dq_sums_ref[...] += dot(k, dscores, (0, 0), plan.precision)

    for_each_tile(reach, first_key, plan, add_tile)

    is_last = step == pl.num_programs(3) - 1

    @pl.when(is_last)
    def _end_rows() -> None:
        write_rows(dq_ref, (dq_sums_ref[...] * plan.head_dim**-0.5).T)

    @pl.when(is_last & (block == plan.num_row_blocks - 1))
    def _end_keys() -> None:
        for_all_keys(write)
