"""The backward pass of span attention on TPU over long rows: one kernel for queries, one for keys and values.

What the gradients of all keys would take is more than the chip's scratch memory holds, so each kernel computes scores
for itself: seven products of a tile in the place of the five of `swjax.attention.tpu_backward`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Ref
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from swjax.attention.blockwise import Index, dot, quotient
from swjax.attention.reach import touching_blocks
from swjax.attention.tpu_blocks import (
    Plan,
    cost_estimate,
    fetched,
    for_each_tile,
    key_spec,
    matrix_block,
    num_fetched,
    read_reach,
    read_rows,
    read_tile,
    row_specs,
    tile_scores,
    write_rows,
)

LIST_BYTES = 256 * 1024
"""Scalar memory for the lists of blocks of rows, of the 1 MiB that a core has."""


def query_gradient(
    reach: Int32[Array, "4*B*blocks"], operands: tuple[Array, ...], plan: Plan, *, interpret: bool
) -> Float[Array, "B K g L H"]:
    """The gradient of rows.

    Args:
        reach: `RowSpans.reach`.
        operands: as `swjax.attention.tpu_backward` makes them.
        plan: sizes.
        interpret: run the kernel as plain JAX.
    """
    q_blocks = operands[2]
    edge, matrix, number = row_specs(plan)
    keys = key_spec(plan)
    return pl.pallas_call(
        functools.partial(_query_gradient_body, plan=plan),
        out_shape=jax.ShapeDtypeStruct(q_blocks.shape, q_blocks.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(plan.batch, plan.key_heads, plan.num_row_blocks, num_fetched(reach, plan)),
            in_specs=[edge, edge, matrix, matrix, number, number, keys, keys],
            out_specs=matrix,
            scratch_shapes=[pltpu.VMEM((plan.head_dim, plan.rows), jnp.float32)],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
        ),
        cost_estimate=cost_estimate(plan, products=3, row_arrays=3),
        interpret=interpret,
        name="span_attention_query_gradient",
    )(reach, *operands)


def _query_gradient_body(
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
    sums_ref: Ref,
    *,
    plan: Plan,
) -> None:
    batch, _, block, step = (pl.program_id(axis) for axis in range(4))
    reach = read_reach(reach_ref, batch, block, plan)
    first_key = (fetched(reach, plan)[0] + step) * plan.keys

    @pl.when(step == 0)
    def _begin() -> None:
        sums_ref[...] = jnp.zeros_like(sums_ref)

    def add_tile(offset: Index, masked: bool) -> None:
        k, v = (read_tile(ref, offset, first_key, plan, masked) for ref in (k_ref, v_ref))
        scores = tile_scores(k, read_rows(q_ref, plan), start_ref[...], stop_ref[...], first_key + offset, plan, masked)
        weights = jnp.exp2(scores - lse_ref[...])
        dscores = weights * (dot(v, read_rows(dout_ref, plan), (1, 1), plan.precision) - along_ref[...])
        sums_ref[...] += dot(k, dscores.astype(k.dtype), (0, 0), plan.precision)

    for_each_tile(reach, first_key, plan, add_tile)

    @pl.when(step == pl.num_programs(3) - 1)
    def _end() -> None:
        write_rows(dq_ref, (sums_ref[...] * plan.head_dim**-0.5).T)


def key_gradients(
    reach: Int32[Array, "4*B*blocks"], operands: tuple[Array, ...], plan: Plan, *, interpret: bool
) -> tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    """The gradients of keys and values; the arguments are those of `query_gradient`."""
    k, v = operands[-2:]
    entries = plan.batch * plan.num_key_blocks * plan.num_row_blocks
    # Where lists for all blocks of keys are too long, neighbours share one, and pass over what does not touch them.
    shared = min(pl.cdiv(4 * entries, LIST_BYTES), plan.num_key_blocks)
    lists = pl.cdiv(plan.num_key_blocks, shared)
    low, high = reach.reshape(plan.batch, -1, 4)[..., :2].transpose(2, 0, 1)
    counts, touching = touching_blocks(low, high, width=plan.keys * shared, num_keys=plan.num_keys)

    def rows_at(b: Index, i: Index, j: Index, counts_ref: Ref, touching_ref: Ref) -> Array:
        return _listed(b * lists + quotient(i, shared), j, counts_ref, touching_ref, plan)

    edge = pl.BlockSpec((None, 1, plan.rows), lambda b, h, i, j, _, *refs: (b, 0, rows_at(b, i, j, *refs)))
    matrix = matrix_block(plan, lambda b, h, i, j, _, *refs: (b, h, rows_at(b, i, j, *refs)))
    number = pl.BlockSpec((None, None, 1, plan.rows), lambda b, h, i, j, _, *refs: (b, h, 0, rows_at(b, i, j, *refs)))
    keys = pl.BlockSpec((None, None, plan.keys, plan.head_dim), lambda b, h, i, j, *refs: (b, h, i, 0))
    dk, dv = pl.pallas_call(
        functools.partial(_key_gradients_body, plan=plan, shared=shared),
        out_shape=(jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(plan.batch, plan.key_heads, plan.num_key_blocks, jnp.maximum(counts.max(), 1)),
            in_specs=[edge, edge, matrix, matrix, number, number, keys, keys],
            out_specs=[keys, keys],
            scratch_shapes=[pltpu.VMEM((plan.keys, plan.head_dim), jnp.float32)] * 2,
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
        ),
        cost_estimate=cost_estimate(plan, products=4, row_arrays=2 * plan.num_key_blocks),
        interpret=interpret,
        name="span_attention_key_gradients",
    )(reach, counts.reshape(-1), touching.reshape(-1), *operands)
    return dk, dv


def _key_gradients_body(
    reach_ref: Ref,
    counts_ref: Ref,
    touching_ref: Ref,
    start_ref: Ref,
    stop_ref: Ref,
    q_ref: Ref,
    dout_ref: Ref,
    lse_ref: Ref,
    along_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    dk_ref: Ref,
    dv_ref: Ref,
    dk_sums_ref: Ref,
    dv_sums_ref: Ref,
    *,
    plan: Plan,
    shared: int,
) -> None:
    batch, _, block, step = (pl.program_id(axis) for axis in range(4))
    first_key = block * plan.keys
    here = batch * pl.cdiv(plan.num_key_blocks, shared) + quotient(block, shared)

    @pl.when(step == 0)
    def _begin() -> None:
        dk_sums_ref[...] = jnp.zeros_like(dk_sums_ref)
        dv_sums_ref[...] = jnp.zeros_like(dv_sums_ref)

    def add_tile(offset: Index, masked: bool) -> None:
        tile = pl.ds(offset, plan.tile)
        k, v = (read_tile(ref, offset, first_key, plan, masked) for ref in (k_ref, v_ref))
        q, dout = read_rows(q_ref, plan), read_rows(dout_ref, plan)
        scores = tile_scores(k, q, start_ref[...], stop_ref[...], first_key + offset, plan, masked)
        weights = jnp.exp2(scores - lse_ref[...])
        dv_sums_ref[tile, :] += dot(weights.astype(dout.dtype), dout, (1, 0), plan.precision)
        dscores = weights * (dot(v, dout, (1, 1), plan.precision) - along_ref[...])
        dk_sums_ref[tile, :] += dot(dscores.astype(q.dtype), q, (1, 0), plan.precision)

    @pl.when(step < counts_ref[here])
    def _add() -> None:
        rows = _listed(here, step, counts_ref, touching_ref, plan)
        for_each_tile(read_reach(reach_ref, batch, rows, plan), first_key, plan, add_tile)

    @pl.when(step == pl.num_programs(3) - 1)
    def _end() -> None:
        dk_ref[...] = (dk_sums_ref[...] * plan.head_dim**-0.5).astype(dk_ref.dtype)
        dv_ref[...] = dv_sums_ref[...].astype(dv_ref.dtype)


def _listed(which: Index, step: Index, counts_ref: Ref, touching_ref: Ref, plan: Plan) -> Array:
    """The block of rows at a step of a list; after its end the last one again, which fetches nothing."""
    last = jnp.maximum(counts_ref[which] - 1, 0)
    return touching_ref[which * plan.num_row_blocks + jnp.minimum(step, last)]
