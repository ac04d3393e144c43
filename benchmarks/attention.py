"""Time and memory of span attention beside the other ways to compute the same, on whatever device is there.

    python benchmarks/attention.py                        # 1k to 128k with the heads of Qwen2.5-VL 7B
    python benchmarks/attention.py --lengths 8k --methods span dense
    python benchmarks/attention.py --heads 1 --key-heads 1 --output runs/attention_1_head

Each figure comes from a process of its own, so that peaks of memory are its own too. The methods:

    span      swjax.attention.span_attention (--implementation; auto by default)
    dense     a float32 mask of 4 L^2 bytes added to the scores before an eager softmax, as in the authors' code
    boolean   jax.nn.dot_product_attention with a boolean mask
    limit     causal attention without the group mask, the fastest that the device has: splash attention on a TPU,
              cuDNN's flash attention on an NVIDIA GPU, our own chunked one on a CPU, which has no other; it is
              causal whatever the layout, and stands in the table of the first

What does not fit into memory, or would take longer than --limit-s, is left out and the reason is printed. Memory is
that of arguments, results and scratch: `compiled` by the compiler's own account, `peak` as the device (on a CPU: the
operating system, for the process) saw it. The speed counts a visible pair of query and key once for all heads.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import Progress

from swjax.attention import IMPLEMENTATIONS, span_attention
from swjax.streaming import KeySpans, SpecialTokens, build_layout, pad_layout

METHODS = ("span", "dense", "boolean", "limit")
LAYOUTS = ("causal", "gdpe")
PASSES = ("forward", "both")
FRAME_TOKENS = 64
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Case:
    """One figure to measure.

    Attributes:
        method, layout: one of `METHODS` and `LAYOUTS`.
        length: slots of the row.
        which: `forward`, or `both` for forward and backward.
        heads, key_heads, head_dim: sizes.
        dtype: of queries, keys and values.
        implementation: for the method `span`.
    """

    method: str
    layout: str
    length: int
    which: str
    heads: int
    key_heads: int
    head_dim: int
    dtype: str
    implementation: str


def make_spans(layout: str, length: int) -> KeySpans:
    """Spans of one row, int32[L] each: causal, or a streaming answer of 3 tokens a frame over frames of 64 tokens."""
    if layout == "causal":
        return KeySpans(np.zeros(length, np.int32), np.arange(1, length + 1, dtype=np.int32))
    special = SpecialTokens.qwen2_5_vl()
    frames = (length - 20) // (FRAME_TOKENS + 3)
    before = [special.im_start, 7, special.newline, special.vision_start]
    video, answer = [special.video_pad] * (frames * FRAME_TOKENS), [9] * (3 * frames)
    ids = [*before, *video, *special.trailer, *special.prefix, *answer, special.im_end, special.newline]
    grid = np.array([[frames, 16, 16]])
    return pad_layout(build_layout(np.array(ids), grid, variant="gdpe", special_tokens=special), length).spans


def make_function(case: Case, spans: KeySpans) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """What is measured, as a function of (q, k, v, *others), and the others."""
    row = KeySpans(spans.start[None], spans.stop[None])
    if case.method == "span":
        return lambda q, k, v, s: span_attention(q, k, v, s, implementation=case.implementation), (row,)
    if case.method == "limit":
        return _limit(case)
    mask = spans.to_mask(case.length)
    if case.method == "boolean":
        return lambda q, k, v, mask: jax.nn.dot_product_attention(q, k, v, mask=mask), (mask[None, None],)
    return _dense, (np.where(mask, np.float32(0), np.finfo(np.float32).min),)


def _dense(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Eager attention: keys repeated for the query heads, and a float mask added to all scores."""
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) * q.shape[-1] ** -0.5 + mask
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(q.dtype)
    return jnp.einsum("bnts,bsnh->btnh", weights, v)


def _limit(case: Case) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Causal attention, as fast as the device has it."""
    platform = jax.default_backend()
    if platform == "tpu":
        return _splash(case), ()
    if platform == "gpu":
        return lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn"), ()
    spans = make_spans("causal", case.length)
    row = KeySpans(spans.start[None], spans.stop[None])
    return lambda q, k, v, s: span_attention(q, k, v, s, implementation="chunked"), (row,)


def _splash(case: Case) -> Callable[..., Any]:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    group = case.heads // case.key_heads
    mask = splash_attention_mask.MultiHeadMask(
        [splash_attention_mask.CausalMask((case.length, case.length)) for _ in range(group)]
    )
    kernel = splash_attention_kernel.make_splash_mqa_single_device(mask)

    def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        queries = (q * q.shape[-1] ** -0.5)[0].reshape(case.length, case.key_heads, group, case.head_dim)
        out = jax.vmap(kernel)(queries.transpose(1, 2, 0, 3), *(x[0].transpose(1, 0, 2) for x in (k, v)))
        return out.transpose(2, 0, 1, 3).reshape(q.shape)

    return attention


def measure(case: Case, repeats: int, limit_s: float) -> dict[str, Any]:
    """Compiles and times one case in this process.

    Args:
        case: what to measure.
        repeats: runs to take the least time of; fewer if they take long.
        limit_s: seconds after which no further run is begun.

    Returns:
        `seconds`, `compiled_bytes` and `peak_bytes`; without the first and last, and with the reason in `skipped`,
        if it does not fit.
    """
    device = jax.devices()[0]
    spans = make_spans(case.layout, case.length)
    attention, others = make_function(case, spans)
    shape = (1, case.length, case.heads, case.head_dim)
    key_shape = (1, case.length, case.key_heads, case.head_dim)
    arguments = [jax.ShapeDtypeStruct(s, case.dtype) for s in (shape, key_shape, key_shape, shape)]

    def run(q: jax.Array, k: jax.Array, v: jax.Array, dout: jax.Array, *others: Any) -> Any:
        if case.which == "forward":
            return attention(q, k, v, *others)
        out, pull_back = jax.vjp(lambda *qkv: attention(*qkv, *others), q, k, v)
        return out, *pull_back(dout)

    compiled = jax.jit(run, keep_unused=True).lower(*arguments, *others).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    room = _free_bytes(device)
    if needed > room:
        return {"compiled_bytes": needed, "skipped": f"needs {needed / MIB:,.0f} MiB, there are {room / MIB:,.0f}"}

    before = _used_bytes(device)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype) for leaf in arguments]
    placed = jax.block_until_ready(jax.device_put((*arrays, *others), device))
    del arrays, others
    _forget_peak(device)
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < repeats and (not seconds or time.perf_counter() - began < limit_s):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*placed))
        seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds), "compiled_bytes": needed, "peak_bytes": _peak_bytes(device) - before}


def _free_bytes(device: jax.Device) -> int:
    if device.platform == "cpu":
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(0.8 * 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    return int(device.memory_stats()["bytes_limit"])


def _used_bytes(device: jax.Device) -> int:
    if device.platform == "cpu":
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return int(device.memory_stats()["bytes_in_use"])


def _peak_bytes(device: jax.Device) -> int:
    if device.platform == "cpu":
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return int(device.memory_stats()["peak_bytes_in_use"])


def _forget_peak(device: jax.Device) -> None:
    """Begins the process's peak anew, without what compiling took; a device's own has seen nothing yet."""
    if device.platform == "cpu":
        Path("/proc/self/clear_refs").write_text("5")


def measure_apart(case: Case, repeats: int, limit_s: float) -> dict[str, Any]:
    """`measure` in a process of its own."""
    request = json.dumps({"case": dataclasses.asdict(case), "repeats": repeats, "limit_s": limit_s})
    done = subprocess.run([sys.executable, __file__, "--one", request], capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"ended by signal {-done.returncode}"]
        return {"skipped": f"failed: {reason[0][:200]}"}
    return json.loads(done.stdout.splitlines()[-1])


def visible_pairs(case: Case) -> int:
    """Pairs of query and key that attention is computed for."""
    spans = make_spans("causal" if case.method == "limit" else case.layout, case.length)
    return int((spans.stop.astype(np.int64) - spans.start).sum())


def measure_all(cases: Sequence[Case], repeats: int, limit_s: float, console: Console) -> list[dict[str, Any]]:
    """All cases, the short ones first; a case is left out if the one before it shows that it would take too long."""
    records: list[dict[str, Any]] = []
    last: dict[tuple[str, ...], tuple[int, float]] = {}
    with Progress(console=console) as progress:
        task = progress.add_task("measuring", total=len(cases))
        for case in sorted(cases, key=lambda case: case.length):
            series = (case.method, case.layout, case.which)
            length, seconds = last.get(series, (case.length, 0.0))
            expected = seconds * (case.length / length) ** 2
            progress.update(task, description=f"{' '.join(series)} {case.length}")
            if expected > limit_s:
                found: dict[str, Any] = {"skipped": f"would take about {expected:,.0f} s"}
            else:
                found = measure_apart(case, repeats, limit_s)
            if "seconds" in found:
                last[series] = case.length, found["seconds"]
                found["pairs_per_second"] = visible_pairs(case) / found["seconds"]
            else:
                console.print(f"{' '.join(series)} {case.length}: left out, {found['skipped']}")
            records.append(dataclasses.asdict(case) | found)
            progress.advance(task)
    return records


def to_table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: a table a layout, a line a length and method."""
    lines = []
    for layout in LAYOUTS:
        chosen = [record for record in records if record["layout"] == layout]
        if not chosen:
            continue
        lines += [f"\n{layout}:\n", "| length | method | forward | forward and backward | compiled | peak | speed |"]
        lines += ["| ---: | --- | ---: | ---: | ---: | ---: | ---: |"]
        for length in sorted({record["length"] for record in chosen}):
            for method in METHODS:
                cells = {r["which"]: r for r in chosen if r["length"] == length and r["method"] == method}
                if cells:
                    lines.append(f"| {length} | {method} | {' | '.join(_table_cells(cells))} |")
    return "\n".join(lines)


def _table_cells(cells: dict[str, dict[str, Any]]) -> Iterable[str]:
    widest = cells.get("both") or cells["forward"]
    for which in PASSES:
        cell = cells.get(which, {})
        yield f"{1e3 * cell['seconds']:,.1f} ms" if "seconds" in cell else cell.get("skipped", "")
    for field in ("compiled_bytes", "peak_bytes"):
        yield f"{widest[field] / MIB:,.0f} MiB" if field in widest else ""
    yield f"{widest['pairs_per_second'] / 1e6:,.1f} M pairs/s" if "seconds" in widest else ""


def plot(records: Sequence[dict[str, Any]], file: Path, title: str) -> None:
    """Time and memory over length, of the widest pass that was measured, to a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    which = PASSES[-1] if any(record["which"] == PASSES[-1] for record in records) else PASSES[0]
    for method in METHODS:
        for layout, style in zip(LAYOUTS, ("--", "-"), strict=True):
            series = [
                r
                for r in records
                if (r["method"], r["layout"], r["which"]) == (method, layout, which) and "seconds" in r
            ]
            for axis, values in zip(
                axes, ([r["seconds"] for r in series], [r["peak_bytes"] / MIB for r in series]), strict=True
            ):
                if series:
                    lengths = [r["length"] for r in series]
                    colour = f"C{METHODS.index(method)}"
                    axis.plot(lengths, values, style, marker="o", color=colour, label=f"{method}, {layout}")
    for axis, label in zip(axes, ("seconds", "peak memory, MiB"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="slots", ylabel=label)
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.suptitle(f"{title}; {'forward and backward' if which == 'both' else 'forward'}", fontsize="medium")
    figure.savefig(file, dpi=130)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    lengths = [f"{2**i}k" for i in range(8)]
    parser.add_argument("--lengths", nargs="+", default=lengths, help="slots of a row, such as 512 or 8k (1k ... 128k)")
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=LAYOUTS, help="what queries see")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="see above")
    parser.add_argument("--passes", nargs="+", default=list(PASSES), choices=PASSES, help="both = and backward")
    parser.add_argument("--implementation", default="auto", choices=IMPLEMENTATIONS, help="of the method span")
    parser.add_argument("--heads", type=int, default=28, help="query heads (28)")
    parser.add_argument("--key-heads", type=int, default=4, help="key heads (4)")
    parser.add_argument("--head-dim", type=int, default=128, help="features of a head (128)")
    parser.add_argument("--dtype", help="dtype of the arrays; float32 on a CPU and bfloat16 elsewhere")
    parser.add_argument("--repeats", type=int, default=5, help="runs to take the least time of (5)")
    parser.add_argument("--limit-s", type=float, default=60, help="leave out what would take longer, in seconds (60)")
    parser.add_argument("--output", type=Path, default=Path("runs/attention"), help="writes OUTPUT.json, .md and .png")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measures, prints the table and writes it with the figures and a plot."""
    arguments = parse_arguments()
    if arguments.one:
        request = json.loads(arguments.one)
        print(json.dumps(measure(Case(**request["case"]), request["repeats"], request["limit_s"])))
        return
    # This process must not hold a TPU that its children need: what it has to know of the device, a child tells.
    device = subprocess.run(
        [sys.executable, "-c", "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep='\\t')"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    platform, kind = device.stdout.splitlines()[-1].split("\t")
    dtype = arguments.dtype or ("float32" if platform == "cpu" else "bfloat16")
    sizes = arguments.heads, arguments.key_heads, arguments.head_dim, dtype, arguments.implementation
    cases = [
        Case(method, layout, int(length.removesuffix("k")) * (1024 if length.endswith("k") else 1), which, *sizes)
        for length in arguments.lengths
        for layout in arguments.layouts
        for method in arguments.methods
        if method != "limit" or layout == arguments.layouts[0]  # it is causal whatever the layout
        for which in arguments.passes
    ]
    console = Console()
    records = measure_all(cases, arguments.repeats, arguments.limit_s, console)
    title = f"{kind}: {arguments.heads} query and {arguments.key_heads} key heads of {arguments.head_dim}, {dtype}"
    table = f"{title}\n{to_table(records)}\n"
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for ending, content in ((".json", json.dumps(records, indent=1)), (".md", table)):
        Path(f"{arguments.output}{ending}").write_text(content)
    plot(records, Path(f"{arguments.output}.png"), title)
    console.print(table, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
