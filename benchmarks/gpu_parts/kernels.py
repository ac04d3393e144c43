"""Every kernel of span attention for GPUs, values and gradients, against dense attention in float64."""

import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import jax
import jax.numpy as jnp
import numpy as np
from common import Records, part_arguments, streaming_row

from swjax.attention import cache_attention, span_attention
from swjax.attention.gpu import GPUBlocks, make_gpu_kernel
from swjax.attention.kernel import attend
from swjax.attention.span import KERNELS, SpanAttention
from swjax.streaming import KeySpans

SIZES = [
    # batch, queries, keys, heads, key heads, head dim
    (2, 8, 3000, 28, 4, 128),
    (1, 1024, 1024, 7, 1, 128),
    (2, 610, 1700, 7, 1, 128),
    (1, 1000, 1000, 4, 4, 80),
    (2, 513, 1025, 14, 2, 64),
    (2, 1, 5000, 28, 4, 128),
]
TINY_SIZES = [(1, 100, 100, 4, 2, 32), (2, 1, 150, 4, 2, 32)]
HOPPER = jax.sharding.AbstractMesh(
    (1,),
    ("devices",),
    axis_types=(jax.sharding.AxisType.Auto,),
    abstract_device=jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu"),
)
"""What kernels are lowered for where there is no GPU."""
TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2}
"""Largest difference as a share of the norm."""
HALF_ALONE = ("mosaic",)
"""Kernels that take no float32."""


def spans_of(size: tuple[int, ...], rng: np.random.Generator) -> Iterator[tuple[str, KeySpans]]:
    """Spans of several kinds, int32[B, T] each."""
    batch, queries, keys = size[:3]
    start = rng.integers(0, keys, (batch, queries))
    stop = np.minimum(start + rng.integers(0, keys, (batch, queries)), keys)
    yield "random", _spans(start, stop)
    offset = keys - queries
    yield "causal", _spans(np.zeros((batch, queries)), np.tile(np.arange(queries) + offset + 1, (batch, 1)))
    middle = np.full((batch, queries), keys // 3)
    yield "mostly empty", _spans(middle, np.where(np.arange(queries) % 5 == 0, keys // 2, middle))
    if queries == keys and queries >= 100:
        row = streaming_row(queries)[0].spans
        yield "gdpe", _spans(np.tile(row.start, (batch, 1)), np.tile(row.stop, (batch, 1)))


def _spans(start: Any, stop: Any) -> KeySpans:
    return KeySpans(np.asarray(start, np.int32), np.asarray(stop, np.int32))


def dense(q: Any, k: Any, v: Any, spans: KeySpans, dout: Any) -> tuple[np.ndarray, ...]:
    """Attention and its gradients with all scores at once, in float64."""
    q, k, v, dout = (np.asarray(x, np.float64) for x in (q, k, v, dout))
    group = q.shape[2] // k.shape[2]
    wide_k, wide_v = (np.repeat(x, group, axis=2) for x in (k, v))
    scale = q.shape[-1] ** -0.5
    seen = np.asarray(spans.to_mask(k.shape[1]))[:, None]
    scores = np.where(seen, np.einsum("btnh,bsnh->bnts", q, wide_k, optimize=True) * scale, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = weights.sum(axis=-1, keepdims=True)
    weights /= np.where(total == 0, 1, total)
    out = np.einsum("bnts,bsnh->btnh", weights, wide_v, optimize=True)
    dweights = np.einsum("btnh,bsnh->bnts", dout, wide_v, optimize=True)
    dscores = weights * (dweights - (weights * dweights).sum(axis=-1, keepdims=True)) * scale

    def narrow(x: np.ndarray) -> np.ndarray:
        return x.reshape(*k.shape[:3], group, -1).sum(axis=3)

    return (
        out,
        np.einsum("bnts,bsnh->btnh", dscores, wide_k, optimize=True),
        narrow(np.einsum("bnts,btnh->bsnh", dscores, q, optimize=True)),
        narrow(np.einsum("bnts,btnh->bsnh", weights, dout, optimize=True)),
    )


def compare(
    run: Callable[..., Any], size: tuple[int, ...], dtype: str, spans: KeySpans, rng: np.random.Generator
) -> dict[str, Any]:
    """The largest difference of output and gradients, and whether keys that nobody sees were read.

    Args:
        run: (q, k, v, dout, spans) -> output and gradients.
        size, dtype, spans: of the operands.
        rng: draws them.
    """
    batch, queries, keys, heads, key_heads, width = size
    shapes = (batch, queries, heads), (batch, keys, key_heads), (batch, keys, key_heads), (batch, queries, heads)
    q, k, v, dout = (jnp.asarray(rng.standard_normal((*shape, width)), dtype) for shape in shapes)
    found = run(q, k, v, dout, spans)
    expected = dense(q, k, v, spans, dout)
    errors = {
        name: float(np.linalg.norm(np.asarray(one, np.float64) - other) / max(np.linalg.norm(other), 1e-30))
        for name, one, other in zip(("out", "dq", "dk", "dv"), found, expected, strict=True)
    }
    # Blocks of keys may begin and end up to 255 keys outside of what a row sees.
    empty, index = spans.start >= spans.stop, np.arange(keys)
    low = np.where(empty, keys, spans.start).min(axis=1, keepdims=True) - 255
    high = np.where(empty, 0, spans.stop).max(axis=1, keepdims=True) + 255
    outside = ((index < low) | (index >= high))[..., None, None]
    poisoned = run(q, jnp.where(outside, jnp.nan, k), jnp.where(outside, jnp.nan, v), dout, spans)
    clean = all(bool(jnp.array_equal(one, other)) for one, other in zip(found, poisoned, strict=True))
    worst = max(errors.values())
    return {"error": worst, **errors, "poison_ignored": clean, "ok": worst < TOLERANCE[dtype] and clean}


def compare_cache(
    attention: Callable[..., Any], size: tuple[int, ...], dtype: str, rng: np.random.Generator
) -> dict[str, Any]:
    """The same of attention to the second layer of a cache."""
    batch, queries, keys, heads, key_heads, width = size
    q = jnp.asarray(rng.standard_normal((batch, queries, heads, width)), dtype)
    cache = jnp.asarray(rng.standard_normal((2, 3, batch, key_heads, keys, width)), dtype)
    spans = _spans(np.full((batch, queries), keys // 4), np.full((batch, queries), keys - 3))
    found = jax.jit(attention)(q, cache[0], cache[1], jnp.int32(1), spans)
    k, v = (np.asarray(x[1], np.float64).swapaxes(1, 2) for x in cache)
    expected = dense(q, k, v, spans, np.zeros(q.shape))[0]
    error = float(np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected))
    return {"error": error, "ok": error < TOLERANCE[dtype]}


def main() -> None:
    """Each kernel that is written for CUDA, at each size, with each kind of spans."""
    args = part_arguments(__doc__)
    records = Records(args.out, "kernels")
    names = [name for name, kernel in KERNELS.items() if "cuda" in kernel.platforms]
    if args.dry_run:
        lower_for_cuda(records, names)
    cases = itertools.product(reversed(names), TINY_SIZES if args.dry_run else SIZES, TOLERANCE)
    for name, size, dtype in cases:
        if (args.dry_run and name != "gpu") or (dtype == "float32" and name in HALF_ALONE):
            continue
        run = _with_gradients(_attention(name, args.dry_run))
        rng = np.random.default_rng(size[1])
        if size[1] <= 8:
            attention = _cache_attention(name, args.dry_run)
            measure = functools.partial(compare_cache, attention, size, dtype, np.random.default_rng(1))
            records.attempt(measure, method=f"{name} cache", size=list(size), dtype=dtype, spans="one range")
        for kind, spans in spans_of(size, rng):
            measure = functools.partial(compare, run, size, dtype, spans, rng)
            records.attempt(measure, method=name, size=list(size), dtype=dtype, spans=kind)


def lower_for_cuda(records: Records, names: Sequence[str]) -> None:
    """Lowers all that a GPU will be given, which needs none."""
    for size in SIZES:
        batch, queries, keys, heads, key_heads, width = size
        edge = jax.ShapeDtypeStruct((batch, queries), jnp.int32)
        for dtype in TOLERANCE:
            q, k = (
                jax.ShapeDtypeStruct((batch, length, number, width), dtype)
                for length, number in ((queries, heads), (keys, key_heads))
            )
            for name in names:
                if dtype == "float32" and name in HALF_ALONE:
                    continue

                def lower(name: str = name, q: Any = q, k: Any = k, edge: Any = edge) -> dict[str, Any]:
                    run = _with_gradients(functools.partial(span_attention, implementation=name))
                    with jax.sharding.use_abstract_mesh(HOPPER):
                        lowered = run.trace(q, k, k, q, KeySpans(edge, edge)).lower(lowering_platforms=("cuda",))
                    return {"ok": "custom_call" in lowered.as_text()}

                records.attempt(lower, method=f"{name}, lowered for CUDA", size=list(size), dtype=dtype)


def _with_gradients(attention: Callable[..., Any]) -> Callable[..., Any]:
    @jax.jit
    def run(q: Any, k: Any, v: Any, dout: Any, spans: KeySpans) -> Any:
        out, pull_back = jax.vjp(lambda q, k, v: attention(q, k, v, spans), q, k, v)
        return out, *pull_back(dout)

    return run


def _attention(name: str, dry_run: bool) -> Callable[..., Any]:
    if dry_run:
        return functools.partial(attend, make_gpu_kernel(GPUBlocks(64, 32, 64, 64), interpret=True))
    return functools.partial(span_attention, implementation=name)


def _cache_attention(name: str, dry_run: bool) -> Callable[..., Any]:
    if dry_run:
        return make_gpu_kernel(GPUBlocks(64, 32), interpret=True).cache
    return functools.partial(cache_attention, like=SpanAttention(name))


if __name__ == "__main__":
    main()
