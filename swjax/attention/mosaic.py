"""Span attention on NVIDIA's Hopper GPUs: Pallas kernels, by way of Mosaic, that compute only what spans reach.

One program has a tile of queries of one head, and goes through the blocks of keys, which begin at multiples of their
size, from the first that any of its spans touches to the last. Blocks that all queries of a warpgroup see whole are not
masked. One warpgroup fetches keys and values ahead; two compute, each for its own `ROWS` queries, and take turns at the
tensor cores. For gradients of keys and values, one program has a tile of keys and goes through a list of the parts of
the queries that touch it, with all heads of the group. Few queries are packed (`swjax.attention.packing`).

As in all blockwise kernels here, keys that no span reaches may be anything (even NaN) if nothing in their block is
reached; in a block that is partly reached, values must be finite, as weights of zero multiply them.

They take bfloat16 and float16, with at most 128 features a head, and JAX 0.10.2 or later. `auto` takes them on Hopper.
They are compared with the dense attention in interpret mode (JAX 0.11) and on an H200, where forward they have 91 to
113 % of the speed of cuDNN's causal attention (benchmarks/RESULTS.md).
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, DTypeLike, Float, Int32

from swjax.attention.kernel import Kernel, refuse
from swjax.attention.packing import merge, pack, unpack
from swjax.streaming import KeySpans

PACKED_ROWS = 64
"""Queries x heads of a group up to which they are packed."""

MAX_WIDTH = 128
"""Features of a head that fit."""

DTYPES = (jnp.bfloat16, jnp.float16)


@dataclass(frozen=True)
class MosaicBlocks:
    """Sizes of blocks and pipelines. Every compute warpgroup has 64 queries (or keys, for their gradients).

    Attributes:
        keys, stages: keys of one step, a multiple of 64, and steps that are fetched ahead, forward.
        backward_keys, backward_stages: the same for gradients of queries; those of keys take 64 queries a step.
        programs: as many as keep a GPU busy; with fewer, the keys of few queries are divided.
    """

    keys: int = 128
    stages: int = 2
    backward_keys: int = 64
    backward_stages: int = 2
    programs: int = 132


def _capability() -> str | None:
    """That of this machine's GPU; None where there is none, as where programs are compiled ahead of time."""
    return getattr(jax.devices()[0], "compute_capability", None)


def fits_this_gpu(dtype: DTypeLike, width: int) -> bool:
    """Whether this machine has a GPU on which the kernels take such arrays.

    Args:
        dtype: of queries, keys and values.
        width: features of a head.
    """
    return dtype in DTYPES and width <= MAX_WIDTH and (_capability() or "").startswith("9.")


def _unfit(q: Array, k: Array, v: Array) -> str | None:
    """Why the kernels cannot take such arrays on this machine's GPU, if they cannot."""
    found = {x.dtype for x in (q, k, v)}
    if len(found) > 1 or q.dtype not in DTYPES or q.shape[-1] > MAX_WIDTH:
        names = " and ".join(sorted(str(dtype) for dtype in found))
        return (
            f"attention implementation 'mosaic' takes bfloat16 or float16 with at most {MAX_WIDTH} features a head, "
            f"and this is {names} with {q.shape[-1]}; choose 'gpu' or 'chunked'"
        )
    capability = _capability()
    if capability is not None and not capability.startswith("9."):
        return (
            "attention implementation 'mosaic' is for GPUs of compute capability 9 (Hopper), "
            f"and this one has {capability}; choose 'auto' or 'gpu'"
        )
    return None


def _forward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "*keys"],
    v: Float[Array, "*keys"],
    spans: KeySpans,
    *,
    layer: Int32[Array, ""] | None = None,
    blocks: MosaicBlocks,
    interpret: object,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Keys and values are [B, S, K, H], or with `layer` a cache, [layers, B, K, S, H]."""
    batch, length, heads, width = q.shape
    if reason := _unfit(q, k, v):
        lse_shape = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
        out, lse = refuse(reason, (jax.ShapeDtypeStruct(q.shape, q.dtype), lse_shape))
        return out, lse
    from swjax.attention import mosaic_forward
    from swjax.attention.mosaic_blocks import prepare

    key_heads = k.shape[2]
    if length * heads // key_heads > PACKED_ROWS:
        plan, operands = prepare(q, k, v, spans, keys=blocks.keys, stages=blocks.stages, interpret=interpret)
        out, lse = mosaic_forward.attend(plan, operands, layer)
        return out[0, :, :length, :, :width], lse[0, :, :, :length]
    rows, spans = pack(q, spans, key_heads)
    plan, operands = prepare(rows, k, v, spans, keys=blocks.keys, stages=blocks.stages, interpret=interpret)
    splits = min(pl.cdiv(blocks.programs, batch * key_heads), pl.cdiv(plan.num_keys, 4 * plan.keys))
    out, lse = merge(*mosaic_forward.attend(plan._replace(splits=splits), operands, layer))
    out, lse = unpack(out[:, : rows.shape[1], :, :width], lse[:, :, : rows.shape[1]], length)
    return out.astype(q.dtype), lse


def _backward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    spans: KeySpans,
    *residuals: Array,
    blocks: MosaicBlocks,
    interpret: object,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    if reason := _unfit(q, k, v):
        dq, dk, dv = refuse(reason, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)])
        return dq, dk, dv
    from swjax.attention.mosaic_backward import backward

    return backward(q, k, v, spans, *residuals, blocks=blocks, interpret=interpret)


@functools.cache
def make_mosaic_kernel(blocks: MosaicBlocks, *, interpret: object = False) -> Kernel:
    """The kernels with blocks of a given size.

    Args:
        blocks: sizes of blocks.
        interpret: parameters of Pallas's GPU interpreter, which runs them on any platform, slowly, for tests. Passes
            that it runs must not be compiled together: it may wait for itself.
    """
    forward_pass = functools.partial(_forward, blocks=blocks, interpret=interpret)
    backward_pass = functools.partial(_backward, blocks=blocks, interpret=interpret)

    def cache(q: Array, keys: Array, values: Array, layer: Array, spans: KeySpans) -> Array:
        return forward_pass(q, keys, values, spans, layer=layer)[0]

    if interpret:
        return Kernel(forward_pass, backward_pass, cache)
    return Kernel(jax.jit(forward_pass), jax.jit(backward_pass), jax.jit(cache), platforms=("cuda",))


mosaic_kernel = make_mosaic_kernel(MosaicBlocks())
