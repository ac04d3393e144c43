"""The forward pass of span attention on Hopper GPUs, for whole or packed queries."""

import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Ref
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, DTypeLike, Float, Int32

from swjax.attention.blockwise import FIRST_MAXIMUM, LOG2E, Index
from swjax.attention.kernel import EMPTY_LSE
from swjax.attention.mosaic_blocks import (
    BY_ROW,
    MATRIX,
    PARAMETERS,
    ROWS,
    Channel,
    Operands,
    Plan,
    across,
    add_products,
    fetch_ahead,
    key_blocks,
    mask_rows,
    set_registers,
    shared,
)
from swjax.attention.packing import NO_KEYS

Carry: TypeAlias = tuple[Array, Array, Array]
"""Of a warpgroup's queries: weighted sums of values [queries, features], largest score and sum of weights [queries]."""


def attend(
    plan: Plan, operands: Operands, layer: Int32[Array, ""] | None
) -> tuple[Float[Array, "splits B T N H"], Float[Array, "splits B N T"]]:
    """Attention to each part of the keys; in float32 if there are several.

    Args:
        plan, operands: from `swjax.attention.mosaic_blocks.prepare`.
        layer: of the cache that the keys lie in; None if they lie in none.
    """
    dtype = operands.q.dtype
    out_dtype = dtype if plan.splits == 1 else jnp.float32
    stages, groups = plan.stages, plan.warpgroups
    filled, freed = plgpu.Barrier(num_barriers=stages), plgpu.Barrier(num_arrivals=groups, num_barriers=stages)
    scratch: Any = dict(
        q_shared=shared(dtype, groups, ROWS, plan.width),
        keys=Channel((shared(dtype, stages, plan.keys, plan.width),), filled, freed),
        values=Channel((shared(dtype, stages, plan.keys, plan.width),), filled, freed),
        out_shared=None if plan.splits == 1 else shared(out_dtype, groups, ROWS, plan.width),
        lse_shared=plgpu.SMEM((groups, ROWS), jnp.float32),
        edges_shared=plgpu.SMEM((groups, 2, ROWS), jnp.int32),
        q_filled=plgpu.Barrier(num_arrivals=2, num_barriers=groups),
        turns=plgpu.Barrier(num_barriers=groups) if groups > 1 else None,
    )
    kernel = plgpu.kernel(
        functools.partial(_forward_body, plan=plan, cached=layer is not None),
        out_type=(
            jax.ShapeDtypeStruct((plan.splits, *operands.q.shape), out_dtype),
            jax.ShapeDtypeStruct((plan.splits, plan.batch, plan.heads, plan.length), jnp.float32),
        ),
        scratch_types=scratch,
        grid=(plan.heads, plan.num_tiles * plan.splits, plan.batch),
        grid_names=("head", "tile", "row"),
        num_threads=groups + 1,
        thread_name="warpgroup",
        compiler_params=PARAMETERS,
        kernel_name="span_attention_forward",
        interpret=plan.interpret,
    )
    return kernel(*([] if layer is None else [layer.reshape(1)]), *operands)


def _forward_body(*refs: Ref, plan: Plan, cached: bool, **scratch: Any) -> None:
    layer = refs[0][0] if cached else None
    reach, whole, edges, q, k, v, out, lse = refs[cached:]
    warpgroup = jax.lax.axis_index("warpgroup")
    head, row, cell = jax.lax.axis_index("head"), jax.lax.axis_index("row"), jax.lax.axis_index("tile")
    split = jax.lax.rem(cell, jnp.int32(plan.splits))
    # Late queries, which see most if attention is causal, come first, so that none of them is left for the end.
    tile = plan.num_tiles - 1 - jax.lax.div(cell, jnp.int32(plan.splits))
    low, high = reach[row, tile, 0], reach[row, tile, 1]
    share = jax.lax.div(high - low + (plan.splits - 1), jnp.int32(plan.splits))
    first = jnp.minimum(low + split * share, high)
    steps = jnp.minimum(share, high - first)
    key_head = jax.lax.div(head, jnp.int32(plan.group))

    @pl.when(warpgroup < plan.warpgroups)
    def _compute() -> None:
        set_registers(plan.warpgroups, compute=True)
        rows = pl.ds(tile * plan.tile + warpgroup * ROWS, ROWS)
        part = tile * plan.warpgroups + warpgroup
        _forward_rows(
            q.at[row, rows, head],
            edges.at[row, part],
            (whole[row, part, 0], whole[row, part, 1]),
            out.at[split, row, rows, head],
            lse.at[split, row, head, rows],
            first,
            steps,
            warpgroup,
            plan,
            **scratch,
        )

    @pl.when(warpgroup == plan.warpgroups)
    def _fetch() -> None:
        set_registers(plan.warpgroups, compute=False)
        at = key_blocks(k, v, row, key_head, layer, plan)
        fetch_ahead(steps, plan.stages, (scratch["keys"], scratch["values"]), lambda step: at(first + step))


def _forward_rows(
    q: Any,
    edges: Any,
    whole: tuple[Index, Index],
    out: Any,
    lse: Any,
    first: Index,
    steps: Index,
    warpgroup: Index,
    plan: Plan,
    *,
    q_shared: Any,
    edges_shared: Any,
    keys: Channel[Ref],
    values: Channel[Ref],
    out_shared: Any,
    lse_shared: Any,
    q_filled: Any,
    turns: Ref | None,
) -> None:
    """What one warpgroup does with its queries."""
    q_shared, edges_shared, lse_shared, q_filled = (
        ref.at[warpgroup] for ref in (q_shared, edges_shared, lse_shared, q_filled)
    )
    out_shared = q_shared if out_shared is None else out_shared.at[warpgroup]
    plgpu.copy_gmem_to_smem(q, q_shared, q_filled)
    plgpu.copy_gmem_to_smem(edges, edges_shared, q_filled)

    # Two warpgroups take turns: while one raises its scores, the other has the tensor cores.
    def await_turn() -> None:
        if turns is not None:
            plgpu.barrier_wait(turns.at[warpgroup])

    def pass_turn() -> None:
        if turns is not None:
            plgpu.barrier_arrive(turns.at[1 - warpgroup])

    def attend_block(step: Index, carry: Carry) -> Carry:
        slot = jax.lax.rem(step, jnp.int32(plan.stages))
        block = first + step

        def multiply_keys(product: Any) -> Array:
            plgpu.wgmma(product, q_shared, keys.buffers[0].at[slot].transpose((1, 0)))
            pass_turn()
            return product[...]

        scores = pl.run_scoped(multiply_keys, plgpu.ACC((ROWS, plan.keys), jnp.float32))
        plgpu.barrier_arrive(keys.freed.at[slot])
        scores = mask_rows(scores, (block >= whole[0]) & (block < whole[1]), block * plan.keys, start, stop)

        (sums, largest, total), weights = _weigh(scores, carry, plan.scale, q_shared.dtype)

        plgpu.barrier_wait(values.filled.at[slot])
        await_turn()

        def await_keys() -> None:
            @pl.when(step + 1 < steps)
            def _() -> None:
                plgpu.barrier_wait(keys.filled.at[jax.lax.rem(step + 1, jnp.int32(plan.stages))])

        (sums,) = add_products(plan, (sums, weights, values.buffers[0].at[slot]), meanwhile=await_keys)
        plgpu.barrier_arrive(values.freed.at[slot])
        return sums, largest, total

    nothing = (
        plgpu.layout_cast(jnp.zeros((ROWS, plan.width), jnp.float32), MATRIX),
        plgpu.layout_cast(jnp.full((ROWS,), FIRST_MAXIMUM, jnp.float32), BY_ROW),
        plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), BY_ROW),
    )
    plgpu.barrier_wait(q_filled)
    start, stop = (plgpu.layout_cast(edges_shared[i], BY_ROW) for i in range(2))
    pl.when(steps > 0)(lambda: plgpu.barrier_wait(keys.filled.at[0]))
    pl.when(warpgroup == 1)(await_turn)
    attended = jax.lax.fori_loop(0, steps, attend_block, nothing)
    pl.when(warpgroup == 0)(pass_turn)
    _store(attended, out_shared, lse_shared, EMPTY_LSE if plan.splits == 1 else NO_KEYS)
    plgpu.copy_smem_to_gmem(out_shared, out)
    plgpu.copy_smem_to_gmem(lse_shared, lse)
    plgpu.wait_smem_to_gmem(0)


def _weigh(scores: Array, carry: Carry, scale: float, dtype: DTypeLike) -> tuple[Carry, Array]:
    """One step of the running softmax: what was summed before, shrunk to the new maximum, and a block's weights."""
    sums, largest, total = carry
    new_largest = jnp.maximum(largest, scores.max(axis=1) * scale)
    weights = jnp.exp2(scores * scale - across(new_largest, scores.shape))
    shrink = jnp.exp2(largest - new_largest)
    total = total * shrink + weights.sum(axis=1)
    sums = sums * across(shrink, sums.shape)
    narrow = weights.astype(dtype)
    sums, total, new_largest, narrow = jax.lax.optimization_barrier((sums, total, new_largest, narrow))
    return (sums, new_largest, total), narrow


def _store(attended: Carry, out_shared: Ref, lse_shared: Ref, empty_lse: float) -> None:
    """Puts the outputs of a warpgroup's queries and their log-sum-exp into shared memory."""
    sums, largest, total = attended
    is_empty = total == 0.0
    total = jnp.where(is_empty, 1.0, total)
    out_shared[...] = (sums * across(1.0 / total, sums.shape)).astype(out_shared.dtype)
    lse_shared[...] = jnp.where(is_empty, empty_lse, largest * (1 / LOG2E) + jnp.log(total))
    plgpu.commit_smem()
