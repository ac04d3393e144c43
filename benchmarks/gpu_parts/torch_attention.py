"""Time and memory of PyTorch's attention on the streaming row and on a causal one.

    python benchmarks/gpu_parts/torch_attention.py --out FILE [--dry-run]

The methods, all in bfloat16 with the grouped heads of Qwen2.5-VL 7B:

    torch_flex          FlexAttention, compiled, with the block mask of the row's spans
    torch_sdpa_causal   scaled_dot_product_attention(is_causal): the faster of flash and cuDNN
    torch_flex_causal   FlexAttention with a causal block mask
    torch_sdpa_mask     scaled_dot_product_attention with a dense boolean mask of the row's spans. The kernels that
                        take a mask want as many key heads as heads: they are repeated inside of the timed call

`METHOD_error` compares output and gradients with dense attention in float32 at the shortest length, as the largest
difference over the largest value; `torch_flex_block_mask` is the time to make a block mask. The forward pass keeps
what a backward pass would need. Peak memory has the inputs in it.
"""

import functools
import itertools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from common import (
    TINY_ATTENTION,
    AttentionSizes,
    Records,
    causal_spans,
    part_arguments,
    reason,
    streaming_row,
    timed,
    visible_pairs,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention as sdpa
from torch_common import (
    DENSE_FALLBACK,
    DEVICE,
    ON_GPU,
    block_mask,
    dense_mask,
    dense_of,
    forget_peak,
    on_device,
    peak_bytes,
    sees,
    wait,
)

from swjax.streaming import KeySpans

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
LAYOUTS = {
    "torch_flex": "gdpe",
    "torch_sdpa_causal": "causal",
    "torch_flex_causal": "causal",
    "torch_sdpa_mask": "gdpe",
}
FIRST, THEN = tuple(LAYOUTS)[:2], tuple(LAYOUTS)[2:]
CAUSAL_BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
MASK_BACKENDS = {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
CPU_BACKENDS = {"math": SDPBackend.MATH}
LONGEST_DENSE_MASK = 32_768
CASE_SECONDS, PART_SECONDS = 1.5, 75.0
INPUT_SETS = 3

compiled_flex = torch.compile(flex_attention, dynamic=False, fullgraph=True)
torch._dynamo.config.recompile_limit = 64


def spans_of(layout: str, length: int) -> KeySpans:
    """int32[L] each, of the streaming row or of a causal one."""
    return streaming_row(length)[0].spans if layout == "gdpe" else causal_spans(length)


def causal_mod(batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
    """A `mask_mod` of FlexAttention."""
    return query >= key


@functools.cache  # a mask made anew could have it compiled anew
def flex(method: str, length: int) -> Attend:
    """FlexAttention with its block mask made; on a CPU without torch.compile, and dense where there are gradients."""
    mask_mod = causal_mod if method == "torch_flex_causal" else sees(spans_of("gdpe", length))
    blocks = block_mask(mask_mod, length)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if ON_GPU:
            return compiled_flex(q, k, v, block_mask=blocks, enable_gqa=True)
        if q.requires_grad:
            return sdpa(q, k, v, attn_mask=dense_of(blocks), enable_gqa=True)
        return flex_attention(q, k, v, block_mask=blocks, enable_gqa=True)

    return attend


def dense_causal(backend: SDPBackend) -> Attend:
    """PyTorch's own causal attention by one of its backends, which fails where it cannot rather than take another."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            return sdpa(q, k, v, is_causal=True, enable_gqa=True)

    return attend


def dense_masked(backend: SDPBackend, mask: torch.Tensor) -> Attend:
    """The same with a boolean mask."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        with sdpa_kernel(backend):
            return sdpa(q, k, v, attn_mask=mask)

    return attend


def implementations(method: str, length: int) -> Iterator[tuple[str, Attend]]:
    """The ways to compute a method, by name."""
    if method.startswith("torch_flex"):
        yield ("compiled" if ON_GPU else DENSE_FALLBACK), flex(method, length)
    elif method == "torch_sdpa_causal":
        for name, backend in (CAUSAL_BACKENDS if ON_GPU else CPU_BACKENDS).items():
            yield name, dense_causal(backend)
    else:
        mask = dense_mask(spans_of("gdpe", length))
        for name, backend in (MASK_BACKENDS if ON_GPU else CPU_BACKENDS).items():
            yield name, dense_masked(backend, mask)


def random_inputs(sizes: AttentionSizes, length: int, *, grad: bool, seed: int = 0) -> list[torch.Tensor]:
    """Queries, keys and values, bfloat16[1, heads, L, head_dim], and the gradient of the output."""
    torch.manual_seed(seed)
    heads = (sizes.heads, sizes.key_heads, sizes.key_heads, sizes.heads)
    made = [torch.randn(1, n, length, sizes.head_dim, device=DEVICE, dtype=torch.bfloat16) for n in heads]
    for tensor in made[:3]:
        tensor.requires_grad_(grad)
    return made


def time_case(attend: Attend, sizes: AttentionSizes, length: int, which: str) -> dict[str, Any]:
    """Seconds and peak memory of one way to compute a method."""
    forget_peak()
    grad = ON_GPU or which == "both"  # one compiled graph does for both, except on a CPU, where flex has no backward
    sets = itertools.cycle([random_inputs(sizes, length, grad=grad, seed=seed) for seed in range(INPUT_SETS)])

    def run() -> Any:
        *inputs, gradient = next(sets)
        out = attend(*inputs)
        return out if which == "forward" else torch.autograd.grad(out, inputs, gradient)

    wait(run())
    began = time.perf_counter()
    wait(run())
    fitting = int(CASE_SECONDS / (time.perf_counter() - began))
    found = timed(run, wait, min(sizes.repeats, max(3, fitting)), warm=1)
    return {**found, "peak_bytes": peak_bytes()}


def fastest(method: str, sizes: AttentionSizes, length: int, which: str) -> dict[str, Any]:
    """The fastest way that works, and what became of the others."""
    found: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for name, attend in implementations(method, length):
        try:
            found[name] = time_case(attend, sizes, length, which)
        except Exception as error:
            failed[name] = reason(error)
    if not found:
        raise RuntimeError("; ".join(f"{name}: {why}" for name, why in failed.items()))
    best = min(found, key=lambda name: found[name]["seconds"])
    others = {name: case["seconds"] for name, case in found.items() if name != best}
    return {"implementation": best, **found[best], "other_seconds": others, "other_failures": failed}


def reference(spans: KeySpans, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention from its definition, float32[1, heads, L, head_dim]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("bnqh,bnkh->bnqk", q, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~dense_mask(spans), -torch.inf).softmax(-1)
    return torch.einsum("bnqk,bnkh->bnqh", weights, v)


def errors(method: str, sizes: AttentionSizes, length: int) -> dict[str, Any]:
    """Largest error of each way to compute a method, of the output and of the gradients."""
    *inputs, gradient = random_inputs(sizes, length, grad=True)
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    right = reference(spans_of(LAYOUTS[method], length), *exact)
    right_all = [right, *torch.autograd.grad(right, exact, gradient.float())]
    found: dict[str, Any] = {}
    for name, attend in implementations(method, length):
        try:
            out = attend(*inputs)
            ours = [out, *torch.autograd.grad(out, inputs, gradient)]
        except Exception as error:
            found[name] = reason(error)
            continue
        off = [
            float((a.detach().float() - b).abs().max() / b.abs().max()) for a, b in zip(ours, right_all, strict=True)
        ]
        found[name] = {"error": off[0], "gradient_error": max(off[1:])}
    worked = [each for each in found.values() if isinstance(each, dict)]
    if not worked:
        raise RuntimeError(str(found))
    worst = {key: max(each[key] for each in worked) for key in ("error", "gradient_error")}
    return {**worst, "by_implementation": found}


def time_block_mask(length: int, repeats: int) -> dict[str, Any]:
    """Seconds to make the block mask of the streaming row, its spans on the device, and the share of blocks skipped."""
    spans = spans_of("gdpe", length)
    start, stop = on_device(spans.start), on_device(spans.stop)
    forget_peak()
    found = timed(lambda: block_mask(sees(KeySpans(start, stop)), length), wait, min(repeats, 5), warm=1)
    return {**found, "peak_bytes": peak_bytes(), "skipped_percent": block_mask(sees(spans), length).sparsity()}


def measure(records: Records, sizes: AttentionSizes, methods: Iterable[str], until: float) -> None:
    """Every length of the methods, until the time is over."""
    for length, method in itertools.product(sizes.lengths, methods):
        layout = LAYOUTS[method]
        case = {"method": method, "length": length, "layout": layout}
        if length == min(sizes.lengths):
            records.attempt(
                lambda method=method, length=length: errors(method, sizes, length),
                **{**case, "method": method + "_error"},
            )
        if method == "torch_flex":
            records.attempt(
                lambda length=length: time_block_mask(length, sizes.repeats),
                **{**case, "method": "torch_flex_block_mask"},
            )
        case["pairs"] = visible_pairs(spans_of(layout, length))
        for which in ("forward", "both"):
            if method == "torch_sdpa_mask" and length > LONGEST_DENSE_MASK:
                why = f"the dense mask, boolean and as numbers, would take {3 * length**2 / 2**30:.0f} GiB"
                records.add(**case, which=which, skipped=why)
            elif time.perf_counter() > until:
                records.add(**case, which=which, skipped="no time left")
            else:
                records.attempt(
                    lambda method=method, length=length, which=which: fastest(method, sizes, length, which),
                    **case,
                    which=which,
                )


def main() -> None:
    """Measures and records everything."""
    arguments = part_arguments(__doc__)
    warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
    sizes = TINY_ATTENTION if arguments.dry_run else AttentionSizes()
    records = Records(arguments.out, "attention")
    until = time.perf_counter() + PART_SECONDS
    measure(records, sizes, FIRST, until)
    measure(records, sizes, THEN, until)


if __name__ == "__main__":
    main()
