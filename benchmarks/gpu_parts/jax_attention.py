"""Attention at the lengths of training rows with 7B's heads: ours beside cuDNN's causal one and dense ones."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import jax
import jax.numpy as jnp
from common import (
    TINY_ATTENTION,
    AttentionSizes,
    Records,
    causal_spans,
    part_arguments,
    streaming_row,
    timed,
    visible_pairs,
)

from swjax.attention import span_attention
from swjax.attention.span import KERNELS
from swjax.streaming import KeySpans

DENSE_LIMIT = 8192
SETS = 3


def methods(dry_run: bool) -> dict[str, tuple[str, Callable[[KeySpans], Callable[..., Any]]]]:
    """Name -> layout, and what makes attention of q, k and v for its spans."""

    def ours(name: str) -> Callable[[KeySpans], Callable[..., Any]]:
        return lambda spans: lambda q, k, v: span_attention(q, k, v, spans, implementation=name)

    def dense(spans: KeySpans) -> Callable[..., Any]:
        mask = jnp.asarray(spans.to_mask(spans.start.shape[1]))[:, None]
        return lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=mask)

    def causal(spans: KeySpans) -> Callable[..., Any]:
        implementation = None if dry_run else "cudnn"
        return lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)

    native = [name for name, kernel in KERNELS.items() if "cuda" in kernel.platforms]
    names = ["chunked"] if dry_run else native
    return {
        "cudnn_causal": ("causal", causal),
        **{name: ("gdpe", ours(name)) for name in names},
        **{f"{name}_causal": ("causal", ours(name)) for name in names},
        "dense_mask": ("gdpe", dense),
    }


def measure(attention: Callable[..., Any], sizes: AttentionSizes, length: int, which: str, pairs: int) -> dict:
    """Median seconds of a call over inputs that change, and the operations that it needs a second."""

    def draw(key: jax.Array, heads: int) -> jax.Array:
        return jax.random.normal(key, (1, length, heads, sizes.head_dim), jnp.bfloat16)

    heads = sizes.heads, sizes.key_heads, sizes.key_heads, sizes.heads
    keys = jax.random.split(jax.random.key(0), (SETS, len(heads)))
    sets = [tuple(draw(key, number) for key, number in zip(row, heads, strict=True)) for row in keys]

    @jax.jit
    def run(q: jax.Array, k: jax.Array, v: jax.Array, dout: jax.Array) -> Any:
        if which == "forward":
            return attention(q, k, v)
        out, pull_back = jax.vjp(attention, q, k, v)
        return out, *pull_back(dout)

    compiled = run.lower(*sets[0]).compile()
    memory = compiled.memory_analysis()
    turn = iter(range(10**9))
    calls = max(1, min(20, 65536 // length))
    found = timed(
        lambda: compiled(*sets[next(turn) % SETS]),
        jax.block_until_ready,
        max(2, sizes.repeats // calls + 2),
        calls=calls,
    )
    products = 2 if which == "forward" else 7
    flops = 2.0 * products * sizes.head_dim * sizes.heads * pairs
    scratch = memory.temp_size_in_bytes if memory else None
    return {**found, "tflops": flops / found["seconds"] / 1e12, "scratch_bytes": scratch}


def main() -> None:
    """Every method at every length, forward and both ways."""
    args = part_arguments(__doc__)
    sizes = TINY_ATTENTION if args.dry_run else AttentionSizes()
    records = Records(args.out, "attention")
    for length in sizes.lengths:
        for name, (layout, make) in methods(args.dry_run).items():
            if name == "dense_mask" and length > DENSE_LIMIT:
                records.add(method=name, length=length, layout=layout, which="forward", failed="too large to be tried")
                continue
            spans = causal_spans(length) if layout == "causal" else streaming_row(length)[0].spans
            row = KeySpans(spans.start[None], spans.stop[None])
            pairs = visible_pairs(spans)
            for which in ("forward", "both"):
                records.attempt(
                    lambda make=make, row=row, length=length, which=which, pairs=pairs: measure(
                        make(row), sizes, length, which, pairs
                    ),
                    method=name,
                    length=length,
                    layout=layout,
                    which=which,
                    pairs=pairs,
                )


if __name__ == "__main__":
    main()
