"""The backward pass of span attention on Hopper GPUs: one kernel for queries, one for keys and values."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Ref
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32

from swjax.attention.blockwise import LOG2E, pad
from swjax.attention.mosaic import MosaicBlocks
from swjax.attention.mosaic_blocks import (
    BY_COLUMN,
    BY_ROW,
    MATRIX,
    PARAMETERS,
    ROWS,
    Channel,
    Operands,
    Plan,
    across,
    add_products,
    down,
    fetch_ahead,
    key_blocks,
    mask_columns,
    mask_rows,
    prepare,
    set_registers,
    shared,
)
from swjax.attention.reach import touching_blocks, union
from swjax.streaming import KeySpans

_WAVES = 4
"""Programs that gradients of keys are divided into, as a multiple of those that keep a GPU busy."""


def backward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    spans: KeySpans,
    out: Float[Array, "B T N H"],
    lse: Float[Array, "B N T"],
    dout: Float[Array, "B T N H"],
    *,
    blocks: MosaicBlocks,
    interpret: object,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """The backward pass, as `swjax.attention.kernel.Kernel` describes it.

    Args:
        q, k, v: inputs of the forward pass.
        spans: int32[B, T] each, the keys that each query sees.
        out, lse: results of the forward pass.
        dout: gradient of `out`, which is cast to the dtype of q.
        blocks: sizes of blocks; those of the backward pass and the programs are used.
        interpret: parameters of Pallas's GPU interpreter, which runs the kernels on any platform, or False.
    """
    length, width, num_keys = q.shape[1], q.shape[3], k.shape[1]
    plan, operands = prepare(
        q, k, v, spans, keys=blocks.backward_keys, stages=blocks.backward_stages, interpret=interpret
    )
    # The softmax's derivative needs the sum of weight x dweight over the keys, which is that of out x dout.
    along = (out.astype(jnp.float32) * dout.astype(jnp.float32)).sum(axis=-1).swapaxes(1, 2)
    numbers = jnp.stack([pad(x, 2, plan.tile).reshape(*x.shape[:2], -1, ROWS) for x in (lse * LOG2E, along)], axis=3)
    dout = pad(pad(dout.astype(q.dtype), 1, plan.tile), 3, 64)
    scale = width**-0.5
    dq = _query_gradient(plan, operands, dout, numbers, scale)
    dk, dv = (
        total.sum(axis=0)[:, :num_keys, :, :width].astype(q.dtype)
        for total in _key_gradients(plan, operands, dout, numbers, scale, blocks.programs)
    )
    return dq[:, :length, :, :width], dk, dv


def _query_gradient(
    plan: Plan,
    operands: Operands,
    dout: Float[Array, "B T N H"],
    numbers: Float[Array, "B N parts 2 64"],
    scale: float,
) -> Float[Array, "B T N H"]:
    dtype, groups, stages = operands.q.dtype, plan.warpgroups, plan.stages
    filled, freed = plgpu.Barrier(num_barriers=stages), plgpu.Barrier(num_arrivals=groups, num_barriers=stages)
    kernel = plgpu.kernel(
        functools.partial(_query_gradient_body, plan=plan, scale=scale),
        out_type=jax.ShapeDtypeStruct(operands.q.shape, dtype),
        scratch_types=dict(
            q_shared=shared(dtype, groups, ROWS, plan.width),
            dout_shared=shared(dtype, groups, ROWS, plan.width),
            edges_shared=plgpu.SMEM((groups, 2, ROWS), jnp.int32),
            numbers_shared=plgpu.SMEM((groups, 2, ROWS), jnp.float32),
            rows_filled=plgpu.Barrier(num_arrivals=4, num_barriers=groups),
            keys=Channel((shared(dtype, stages, plan.keys, plan.width),), filled, freed),
            values=Channel((shared(dtype, stages, plan.keys, plan.width),), filled, freed),
        ),
        grid=(plan.heads, plan.num_tiles, plan.batch),
        grid_names=("head", "tile", "row"),
        num_threads=groups + 1,
        thread_name="warpgroup",
        compiler_params=PARAMETERS,
        kernel_name="span_attention_query_gradient",
        interpret=plan.interpret,
    )
    return kernel(*operands, dout, numbers)


def _query_gradient_body(
    reach: Ref,
    whole: Ref,
    edges: Ref,
    q: Ref,
    k: Ref,
    v: Ref,
    dout: Ref,
    numbers: Ref,
    dq: Ref,
    *,
    q_shared: Ref,
    dout_shared: Ref,
    edges_shared: Ref,
    numbers_shared: Ref,
    rows_filled: Ref,
    keys: Channel,
    values: Channel,
    plan: Plan,
    scale: float,
) -> None:
    warpgroup, head, row = (jax.lax.axis_index(name) for name in ("warpgroup", "head", "row"))
    tile = plan.num_tiles - 1 - jax.lax.axis_index("tile")
    first = reach[row, tile, 0]
    steps = reach[row, tile, 1] - first

    @pl.when(warpgroup < plan.warpgroups)
    def _compute() -> None:
        set_registers(plan.warpgroups, compute=True)
        part = tile * plan.warpgroups + warpgroup
        at = row, pl.ds(part * ROWS, ROWS), head
        mine = [ref.at[warpgroup] for ref in (q_shared, dout_shared, edges_shared, numbers_shared)]
        rows = q.at[at], dout.at[at], edges.at[row, part], numbers.at[row, head, part]
        for source, buffer in zip(rows, mine, strict=True):
            plgpu.copy_gmem_to_smem(source, buffer, rows_filled.at[warpgroup])
        plgpu.barrier_wait(rows_filled.at[warpgroup])
        my_q, my_dout, my_edges, my_numbers = mine
        start, stop = (plgpu.layout_cast(my_edges[i], BY_ROW) for i in range(2))
        lse, along = (plgpu.layout_cast(my_numbers[i], BY_ROW) for i in range(2))
        whole_begin, whole_end = whole[row, part, 0], whole[row, part, 1]

        def add_block(step: Array | int, dq: Array) -> Array:
            slot = jax.lax.rem(step, jnp.int32(plan.stages))
            block = first + step
            k_shared, v_shared = keys.buffers[0].at[slot], values.buffers[0].at[slot]

            def score_gradients(product: Any, dweights: Any) -> Array:
                plgpu.barrier_wait(keys.filled.at[slot])
                plgpu.wgmma(product, my_q, k_shared.transpose((1, 0)))
                plgpu.barrier_wait(values.filled.at[slot])
                plgpu.wgmma(dweights, my_dout, v_shared.transpose((1, 0)))
                scores = plgpu.wgmma_accumulator_load(product, wait_n=1)
                is_whole = (block >= whole_begin) & (block < whole_end)
                scores = mask_rows(scores, is_whole, block * plan.keys, start, stop)
                weights = jnp.exp2(scores * plan.scale - across(lse, scores.shape))
                return weights * (dweights[...] - across(along, scores.shape))

            accumulator = plgpu.ACC((ROWS, plan.keys), jnp.float32)
            dscores = pl.run_scoped(score_gradients, accumulator, accumulator).astype(my_q.dtype)
            plgpu.barrier_arrive(values.freed.at[slot])
            (dq,) = add_products(plan, (dq, dscores, k_shared))
            plgpu.barrier_arrive(keys.freed.at[slot])
            return dq

        nothing = plgpu.layout_cast(jnp.zeros((ROWS, plan.width), jnp.float32), MATRIX)
        total = jax.lax.fori_loop(0, steps, add_block, nothing)
        my_q[...] = (total * scale).astype(my_q.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(my_q, dq.at[at])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == plan.warpgroups)
    def _fetch() -> None:
        set_registers(plan.warpgroups, compute=False)
        at = key_blocks(k, v, row, jax.lax.div(head, jnp.int32(plan.group)), None, plan)
        fetch_ahead(steps, plan.stages, (keys, values), lambda step: at(first + step))


def _key_gradients(
    plan: Plan,
    operands: Operands,
    dout: Float[Array, "B T N H"],
    numbers: Float[Array, "B N parts 2 64"],
    scale: float,
    programs: int,
) -> tuple[Float[Array, "splits B S K H"], Float[Array, "splits B S K H"]]:
    """Tiles of keys go through the parts of `ROWS` queries that touch them.

    The first tiles are seen by nearly all queries and the last by few, so the heads of a group are divided among as
    many programs as let none take much longer than its share of a busy GPU; each gives gradients of its own, float32.
    """
    k, dtype, stages = operands.k, operands.q.dtype, plan.stages
    groups = 1 if plan.num_keys <= ROWS else 2
    tile = groups * ROWS
    counts, touching = touching_parts(operands.edges, tile, plan.num_keys)
    num_tiles = counts.shape[1]
    splits = min(plan.group, pl.cdiv(_WAVES * programs, plan.batch * k.shape[2] * num_tiles))
    plan = plan._replace(splits=splits)
    shape = jax.ShapeDtypeStruct((splits, plan.batch, num_tiles * tile, k.shape[2], plan.width), jnp.float32)
    freed = plgpu.Barrier(num_arrivals=groups, num_barriers=stages)
    rows = shared(dtype, stages, ROWS, plan.width)
    kernel = plgpu.kernel(
        functools.partial(_key_gradients_body, plan=plan, groups=groups, scale=scale),
        out_type=(shape, shape),
        scratch_types=dict(
            k_shared=shared(dtype, groups, ROWS, plan.width),
            v_shared=shared(dtype, groups, ROWS, plan.width),
            total_shared=shared(jnp.float32, groups, ROWS, plan.width),
            keys_filled=plgpu.Barrier(num_arrivals=2, num_barriers=groups),
            queries=Channel(
                (rows, plgpu.SMEM((stages, 2, ROWS), jnp.int32), plgpu.SMEM((stages, 2, ROWS), jnp.float32)),
                plgpu.Barrier(num_arrivals=3, num_barriers=stages),
                freed,
            ),
            douts=Channel((rows,), plgpu.Barrier(num_barriers=stages), freed),
        ),
        grid=(k.shape[2] * splits, num_tiles, plan.batch),
        grid_names=("share", "tile", "row"),
        num_threads=groups + 1,
        thread_name="warpgroup",
        compiler_params=PARAMETERS,
        kernel_name="span_attention_key_gradients",
        interpret=plan.interpret,
    )
    return kernel(counts, touching, operands.edges, operands.q, k, operands.v, dout, numbers)


def touching_parts(
    edges: Int32[Array, "B parts 2 64"], tile: int, num_keys: int
) -> tuple[Int32[Array, "B tiles"], Int32[Array, "B tiles parts"]]:
    """How many parts of the queries reach each tile of keys, and which: 2 x part + (1 if all its queries see all).

    Args:
        edges: starts and stops of the queries' spans.
        tile: keys of a tile.
        num_keys: S.
    """
    start, stop = edges[:, :, 0], edges[:, :, 1]
    low, high = union(start, stop, num_keys)
    counts, touching = touching_blocks(low, high, width=tile, num_keys=num_keys)
    begin = tile * jnp.arange(counts.shape[1], dtype=jnp.int32)[:, None]
    whole = (start.max(axis=-1)[:, None] <= begin) & (stop.min(axis=-1)[:, None] >= begin + tile)
    return counts, 2 * touching + jnp.take_along_axis(whole, touching, axis=-1)


def _key_gradients_body(
    counts: Ref,
    touching: Ref,
    edges: Ref,
    q: Ref,
    k: Ref,
    v: Ref,
    dout: Ref,
    numbers: Ref,
    dk: Ref,
    dv: Ref,
    *,
    k_shared: Ref,
    v_shared: Ref,
    total_shared: Ref,
    keys_filled: Ref,
    queries: Channel,
    douts: Channel,
    plan: Plan,
    groups: int,
    scale: float,
) -> None:
    warpgroup, share, tile, row = (jax.lax.axis_index(name) for name in ("warpgroup", "share", "tile", "row"))
    key_head, split = jax.lax.div(share, jnp.int32(plan.splits)), jax.lax.rem(share, jnp.int32(plan.splits))
    first_head, end_head = (jax.lax.div((split + i) * jnp.int32(plan.group), jnp.int32(plan.splits)) for i in range(2))
    heads = end_head - first_head
    steps = counts[row, tile] * heads

    @pl.when(warpgroup < groups)
    def _compute() -> None:
        set_registers(groups, compute=True)
        first = (tile * groups + warpgroup) * ROWS
        at = row, pl.ds(first, ROWS), key_head
        my_k, my_v = k_shared.at[warpgroup], v_shared.at[warpgroup]
        plgpu.copy_gmem_to_smem(k.at[at], my_k, keys_filled.at[warpgroup])
        plgpu.copy_gmem_to_smem(v.at[at], my_v, keys_filled.at[warpgroup])
        plgpu.barrier_wait(keys_filled.at[warpgroup])

        def add_step(step: Array | int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            total_dk, total_dv, part = carry
            slot = jax.lax.rem(step, jnp.int32(plan.stages))
            q_shared, edges_shared, numbers_shared = (buffer.at[slot] for buffer in queries.buffers)
            dout_shared = douts.buffers[0].at[slot]
            # Read a step ahead, as it takes a while.
            next_part = touching[row, tile, jax.lax.div(jnp.minimum(step + 1, steps - 1), heads)]

            def weights_and_gradients(product: Any, dweights: Any) -> tuple[Array, Array]:
                plgpu.barrier_wait(queries.filled.at[slot])
                plgpu.wgmma(product, my_k, q_shared.transpose((1, 0)))
                plgpu.barrier_wait(douts.filled.at[slot])
                plgpu.wgmma(dweights, my_v, dout_shared.transpose((1, 0)))
                scores = plgpu.wgmma_accumulator_load(product, wait_n=1)
                scores = mask_columns(scores, jax.lax.rem(part, jnp.int32(2)) == 1, first, edges_shared)
                lse = plgpu.layout_cast(numbers_shared[0], BY_COLUMN)
                weights = jnp.exp2(scores * plan.scale - down(lse, scores.shape))
                gradients = dweights[...]
                along = plgpu.layout_cast(numbers_shared[1], BY_COLUMN)
                dscores = weights * (gradients - down(along, scores.shape))
                return weights.astype(my_k.dtype), dscores.astype(my_k.dtype)

            accumulator = plgpu.ACC((ROWS, ROWS), jnp.float32)
            weights, dscores = pl.run_scoped(weights_and_gradients, accumulator, accumulator)
            total_dv, total_dk = add_products(plan, (total_dv, weights, dout_shared), (total_dk, dscores, q_shared))
            plgpu.barrier_arrive(douts.freed.at[slot])
            plgpu.barrier_arrive(queries.freed.at[slot])
            return total_dk, total_dv, next_part

        nothing = plgpu.layout_cast(jnp.zeros((ROWS, plan.width), jnp.float32), MATRIX)
        total_dk, total_dv, _ = jax.lax.fori_loop(0, steps, add_step, (nothing, nothing, touching[row, tile, 0]))
        mine = total_shared.at[warpgroup]
        for total, gradient in ((total_dk * scale, dk), (total_dv, dv)):
            mine[...] = total
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(mine, gradient.at[(split, *at)])
            plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == groups)
    def _fetch() -> None:
        set_registers(groups, compute=False)

        def sources(step: Array | int) -> Sequence[Sequence[Ref]]:
            part = jax.lax.div(touching[row, tile, jax.lax.div(step, heads)], jnp.int32(2))
            head = key_head * jnp.int32(plan.group) + first_head + jax.lax.rem(step, heads)
            at = row, pl.ds(part * ROWS, ROWS), head
            return (q.at[at], edges.at[row, part], numbers.at[row, head, part]), (dout.at[at],)

        fetch_ahead(steps, plan.stages, (queries, douts), sources)
