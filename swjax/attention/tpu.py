"""Span attention on TPU: Pallas kernels that fetch and compute only the blocks of keys that spans reach.

The query heads that share a key head are packed with the queries into rows (in a block, one head of the group after
another), so keys and values are read once a group, and a kernel knows nothing of groups. A block of rows goes through
the union of its spans; which blocks of keys that is, is computed from the spans inside jit and prefetched as scalars,
and the longest such walk bounds the grid. So one compiled program serves every batch, and windows and packed short rows
cost what they see. Tiles of keys that all rows of a block see whole skip the masking. For gradients of keys and values,
a block of keys goes through a list of the blocks of rows that touch it: they need not be neighbours, as an answer
stored before its video sees far to the right.

Scores are kept transposed, keys by rows. What belongs to a row (its edges, maximum, sum) then lies along lanes, maxima
and sums over keys are element by element, and both products for keys and values need no transpose of scores.

Why not splash attention (`jax.experimental.pallas.ops.tpu.splash_attention`), whose mask function could test a span:
it is given one int32 a query, so two edges limit a row to 2 ** 16 keys; its table of blocks would have to be built by
hand from data (`MaskInfo`, a private path); with a table from data its grid does not shrink, so every row would walk
through all keys; and it reads keys once a query head.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import Ref
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from swjax.attention.blockwise import FIRST_MAXIMUM, LOG2E, Index, dot
from swjax.attention.kernel import EMPTY_LSE, Kernel
from swjax.attention.tpu_backward import backward
from swjax.attention.tpu_blocks import (
    LANES,
    Plan,
    TPUBlocks,
    cache_spec,
    cost_estimate,
    fetched,
    for_each_tile,
    from_blocks,
    from_rows,
    make_plan,
    num_fetched,
    read_reach,
    read_rows,
    read_tile,
    row_spans,
    row_specs,
    tile_scores,
    to_blocks,
    write_rows,
)
from swjax.streaming import KeySpans

AHEAD = 2
"""Chunks of rows whose scores are computed before they are needed."""

PIECES = 4
"""Where there is only one chunk, pieces of the keys of a tile take the place of chunks; scores of all come first."""


def _forward_body(
    reach_ref: Ref,
    start_ref: Ref,
    stop_ref: Ref,
    q_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    out_ref: Ref,
    lse_ref: Ref,
    largest_ref: Ref,
    total_ref: Ref,
    sums_ref: Ref,
    *,
    plan: Plan,
    chunk: int,
) -> None:
    batch, _, block, step = (pl.program_id(axis) for axis in range(4))
    reach = read_reach(reach_ref, batch, block, plan)
    first_key = (fetched(reach, plan)[0] + step) * plan.keys

    @pl.when(step == 0)
    def _begin() -> None:
        largest_ref[...] = jnp.full_like(largest_ref, FIRST_MAXIMUM)
        total_ref[...] = jnp.zeros_like(total_ref)
        sums_ref[...] = jnp.zeros_like(sums_ref)

    chunks = [(row, min(chunk, plan.rows - row)) for row in range(0, plan.rows, chunk)]
    in_pieces = len(chunks) == 1 and plan.tile % (PIECES * LANES) == 0
    piece, ahead = (plan.tile // PIECES, PIECES) if in_pieces else (plan.tile, AHEAD)
    parts = [(row, count, first) for row, count in chunks for first in range(0, plan.tile, piece)]

    def attend_tile(offset: Index, masked: bool) -> None:
        k, v = (read_tile(ref, offset, first_key, plan, masked) for ref in (k_ref, v_ref))

        def scores_of(row: int, count: int, first: int) -> Float[Array, "piece chunk"]:
            at = pl.ds(row, count)
            q, keys = read_rows(q_ref, plan, row, count), k[first : first + piece]
            return tile_scores(keys, q, start_ref[:, at], stop_ref[:, at], first_key + offset + first, plan, masked)

        # Asked for before the softmax of the parts before them, which the matrix units would otherwise wait for.
        asked = [scores_of(*part) for part in parts[:ahead]]
        for (row, count, first), following in itertools.zip_longest(parts, parts[ahead:]):
            at = pl.ds(row, count)
            if following is not None:
                asked.append(scores_of(*following))
            scores = asked.pop(0)
            largest = jnp.maximum(largest_ref[:, at], scores.max(axis=0, keepdims=True))
            shrink = jnp.exp2(largest_ref[:, at] - largest)
            weights = jnp.exp2(scores - largest)
            largest_ref[:, at] = largest
            total_ref[:, at] = total_ref[:, at] * shrink + weights.sum(axis=0, keepdims=True)
            values = v[first : first + piece]
            sums_ref[:, at] = sums_ref[:, at] * shrink + dot(values, weights.astype(v.dtype), (0, 0), plan.precision)

    for_each_tile(reach, first_key, plan, attend_tile)

    @pl.when(step == pl.num_programs(3) - 1)
    def _end() -> None:
        is_empty = total_ref[...] == 0
        total = jnp.where(is_empty, 1.0, total_ref[...])
        write_rows(out_ref, (sums_ref[...] / total).T)
        lse_ref[...] = jnp.where(is_empty, EMPTY_LSE, (largest_ref[...] + jnp.log2(total)) / LOG2E)


def _forward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    spans: KeySpans,
    *,
    blocks: TPUBlocks,
    interpret: bool,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    k, v = (x.transpose(0, 2, 1, 3)[None] for x in (k, v))
    return _attend(q, k, v, jnp.int32(0), spans, blocks=blocks, interpret=interpret)


def _attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "layers B K S H"],
    v: Float[Array, "layers B K S H"],
    layer: Int32[Array, ""],
    spans: KeySpans,
    *,
    blocks: TPUBlocks,
    interpret: bool,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Attention to the keys of one layer, which are fetched from where they lie."""
    # float32 takes six passes of the matrix units, all of which are unrolled.
    most_rows = blocks.rows if q.dtype == jnp.float32 else blocks.forward_rows
    plan = make_plan(q, k.shape[2], k.shape[3], blocks, rows=most_rows, keys=blocks.keys)
    rows = row_spans(spans, plan)
    q_blocks = to_blocks(q, plan)
    edge, matrix, number = row_specs(plan)
    keys = cache_spec(plan)
    scalars = jnp.append(rows.reach, layer.astype(jnp.int32))
    out, lse = pl.pallas_call(
        functools.partial(_forward_body, plan=plan, chunk=blocks.chunk),
        out_shape=(
            jax.ShapeDtypeStruct(q_blocks.shape, q.dtype),
            jax.ShapeDtypeStruct((plan.batch, plan.key_heads, 1, plan.num_row_blocks * plan.rows), jnp.float32),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(plan.batch, plan.key_heads, plan.num_row_blocks, num_fetched(rows.reach, plan)),
            in_specs=[edge, edge, matrix, keys, keys],
            out_specs=[matrix, number],
            scratch_shapes=[
                pltpu.VMEM((1, plan.rows), jnp.float32),
                pltpu.VMEM((1, plan.rows), jnp.float32),
                pltpu.VMEM((plan.head_dim, plan.rows), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
        ),
        cost_estimate=cost_estimate(plan, products=2, row_arrays=2),
        interpret=interpret,
        name="span_attention_forward",
    )(scalars, rows.start, rows.stop, q_blocks, k, v)
    return from_blocks(out, plan), from_rows(lse.swapaxes(2, 3), plan)[..., 0].swapaxes(1, 2)


@functools.cache
def make_tpu_kernel(blocks: TPUBlocks, *, interpret: bool = False) -> Kernel:
    """The kernels with blocks of a given size.

    Args:
        blocks: sizes of blocks.
        interpret: run them as plain JAX on any platform, slowly, for tests.
    """
    forward_pass, backward_pass = (
        jax.jit(functools.partial(one, blocks=blocks, interpret=interpret)) for one in (_forward, backward)
    )
    attend = functools.partial(_attend, blocks=blocks, interpret=interpret)
    cache = jax.jit(lambda q, keys, values, layer, spans: attend(q, keys, values, layer, spans)[0])
    return Kernel(forward_pass, backward_pass, cache, platforms=() if interpret else ("tpu",))


tpu_kernel = make_tpu_kernel(TPUBlocks())
