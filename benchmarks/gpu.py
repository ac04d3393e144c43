"""All that is claimed of an NVIDIA GPU, by one command.

    python benchmarks/gpu.py --minutes 9                 # on one H100 or H200; results in runs/gpu
    python benchmarks/gpu.py --dry-run                   # the same in miniature on a CPU
    python benchmarks/gpu.py --tables runs/gpu           # the tables of a run again
    python benchmarks/gpu.py --wheels                    # packages that a bare CUDA image lacks, for `pip download`

Parts run in the order of their worth, each in a process of its own under a limit, until the time is up; every result is
on disk before the next is measured, and what failed says why in the table.

    kernels     every kernel and its gradients against float64, random and poisoned inputs
    attention   2k to 64k tokens with 7B's heads: ours, cuDNN's causal one, dense with a mask, PyTorch's SDPA and
                FlexAttention with a compiled block mask of the same group mask
    step        a training step of 8k tokens with random weights: ours beside Hugging Face with eager attention, a dense
                float mask and all logits (the authors' way), with SDPA and with FlexAttention; same tokens and tower
    streaming   frames taken in while speaking, time to the first word, parallel over sequential, many streams, a long
                stream
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WHEELS = ("ml_collections", "absl-py", "importlib_resources", "zipp")
"""What the parts import that an image with JAX, PyTorch and transformers may lack."""


@dataclass(frozen=True)
class Part:
    """A process of the benchmark.

    Attributes:
        name: what `--parts` calls it.
        script, case: the file in gpu_parts/, and its `--case` if it has several.
        limit_s: seconds after which it is ended; what it has written stays.
    """

    name: str
    script: str
    case: str = ""
    limit_s: int = 90

    @property
    def label(self) -> str:
        """Name and case."""
        return f"{self.script} {self.case}".strip()


PARTS = (
    Part("kernels", "kernels", limit_s=110),
    Part("attention", "jax_attention", limit_s=120),
    Part("step", "train_step", "3b:auto:minimal", 120),
    Part("step", "train_step", "3b:mosaic:minimal", 120),
    Part("step", "torch_step", "3b:eager"),
    Part("step", "torch_step", "3b:flex", 120),
    Part("streaming", "streaming", "3b", 330),
    Part("streaming", "streaming", "3b:gpu", 150),
    Part("streaming", "streaming", "3b:mosaic", 150),
    Part("attention", "torch_attention", limit_s=100),
    Part("step", "torch_step", "3b:sdpa"),
    Part("step", "train_step", "7b:auto:minimal", 120),
    Part("step", "torch_step", "7b:flex"),
    Part("step", "train_step", "7b_4_layers:auto:minimal", 90),
    Part("step", "torch_step", "7b_4_layers:flex"),
    Part("step", "torch_step", "7b:eager"),
    Part("streaming", "streaming", "7b", 150),
)
"""In the order of their worth."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "kernels": ("method", "size", "dtype", "spans", "error", "poison_ignored", "ok"),
    "attention": ("length", "method", "layout", "which", "ms", "spread", "tflops", "of cuDNN"),
    "step": ("model", "method", "trains", "ms", "spread", "tokens_per_second", "mfu", "peak_gib", "loss"),
    "streaming": ("model", "case", "method", "figures"),
}


def run_parts(parts: Sequence[Part], out: Path, minutes: float, limit_s: float, dry_run: bool) -> None:
    """Runs the parts one after another until the time is up, none for longer than the limit."""
    deadline = time.monotonic() + 60 * minutes
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "PYTHONUNBUFFERED": "1",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.93",
        "TOKENIZERS_PARALLELISM": "false",
        **({"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} if dry_run else {}),
    }
    run = partial(_run_part, out=out, deadline=deadline, limit_s=limit_s, environment=environment, dry_run=dry_run)
    # In miniature nothing is measured, so they need not wait for one another.
    with ThreadPoolExecutor(os.cpu_count() if dry_run else 1) as pool:
        list(pool.map(run, parts))


def _run_part(
    part: Part, *, out: Path, deadline: float, limit_s: float, environment: dict[str, str], dry_run: bool
) -> None:
    file, left = out / "records.jsonl", deadline - time.monotonic()
    if left < 15:
        print(f"skipped {part.label}: the time is up", flush=True)
        _note(file, part, "the time was up before it")
        return
    command = [sys.executable, str(HERE / "gpu_parts" / f"{part.script}.py"), "--out", str(file)]
    command += ["--case", part.case] if part.case else []
    command += ["--dry-run"] if dry_run else []
    began = time.monotonic()
    log = out / f"{part.script}_{part.case.replace(':', '_')}.log"
    with log.open("w") as stream:
        try:
            status = subprocess.run(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                timeout=min(part.limit_s, limit_s, left),
            ).returncode
            reason = "" if status == 0 else f"ended with status {status}: {_last_line(log)}"
        except subprocess.TimeoutExpired:
            reason = f"ended after {time.monotonic() - began:.0f} s"
    if reason:
        _note(file, part, reason)
    print(f"{part.label}: {time.monotonic() - began:.0f} s {reason}", flush=True)


def _note(file: Path, part: Part, reason: str) -> None:
    with file.open("a") as out:
        out.write(json.dumps({"part": part.name, "method": part.label, "failed": reason}) + "\n")


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"


def describe_machine(dry_run: bool, commit: str) -> dict[str, str]:
    """Card, driver, versions, date and commit."""
    found = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "python": platform.python_version()}
    if not dry_run:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        found["card"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    if commit or shutil.which("git"):
        asked = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
        found["commit"] = commit or subprocess.run(asked, capture_output=True, text=True).stdout.strip() or "unknown"
    for name in ("jax", "torch", "transformers"):
        code = f"import importlib.metadata as m; print(m.version('{name}'))"
        version = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        found[name] = version.stdout.strip() or "missing"
    return found


def tables(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Markdown, a table a part; failures stand in their rows."""
    causal = {
        (r["length"], r["which"]): _flops(r) / r["seconds"] / 1e12
        for r in records
        if r["part"] == "attention" and r.get("method") == "cudnn_causal" and "seconds" in r
    }
    for part, columns in COLUMNS.items():
        chosen = [record for record in records if record["part"] == part]
        if not chosen:
            continue
        yield f"\n{part}\n"
        yield f"| {' | '.join(columns)} |"
        yield f"| {' | '.join('---' for _ in columns)} |"
        for record in chosen:
            yield f"| {' | '.join(_cell(record, column, causal) for column in columns)} |"
    for record in records:
        if profile := record.get("profile"):
            label = " ".join(str(record[key]) for key in ("model", "case", "method") if key in record)
            shares = (profile["busy_ms"], profile["span_ms"], profile["launches"])
            yield "\n{}: kernels are busy for {:.1f} of {:.1f} ms, {} launches\n".format(label, *shares)
            yield "| ms | runs | kernel |\n| ---: | ---: | --- |"
            for name, milliseconds, runs in profile["kernels"]:
                yield f"| {milliseconds:.2f} | {runs} | {name} |"


def _cell(record: dict[str, Any], column: str, causal: dict[tuple[int, str], float]) -> str:
    if column in ("ms", "error", "figures") and "failed" in record:
        return str(record["failed"]).replace("|", "/")
    if column == "figures":
        known = ("part", "model", "case", "method", "profile")
        return ", ".join(f"{key} {_number(value)}" for key, value in record.items() if key not in known)
    value = record.get(column)
    if column == "ms":
        value = 1e3 * record["seconds"] if "seconds" in record else None
    elif column == "tflops" and value is None and {"seconds", "pairs"} <= record.keys():
        value = _flops(record) / record["seconds"] / 1e12
    elif column == "of cuDNN" and {"seconds", "pairs"} <= record.keys():
        best = causal.get((record["length"], record["which"]))
        value = f"{_flops(record) / record['seconds'] / 1e12 / best:.0%}" if best else None
    elif column == "peak_gib" and record.get("peak_bytes"):
        value = record["peak_bytes"] / 2**30
    return "" if value is None else _number(value)


def _flops(record: dict[str, Any]) -> float:
    """Operations of 7B's heads for the visible pairs: two products forward, five backward."""
    return 2.0 * (2 if record["which"] == "forward" else 7) * 128 * 28 * record["pairs"]


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, list):
        return " ".join(_number(item) for item in value)
    return str(value)


def plot(records: Sequence[dict[str, Any]], file: Path, title: str) -> None:
    """Attention over length, training steps, and the gain of parallel streaming."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    attention = [r for r in records if r["part"] == "attention" and "seconds" in r and r.get("which") == "both"]
    for method in dict.fromkeys(r["method"] for r in attention):
        line = sorted((r["length"], _flops(r) / r["seconds"] / 1e12) for r in attention if r["method"] == method)
        axes[0].plot(*zip(*line, strict=True), "o-", label=method)
    axes[0].set(xlabel="slots", ylabel="TFLOP/s of visible pairs", title="Attention, forward and backward")
    axes[0].set_xscale("log", base=2)
    steps = [r for r in records if r["part"] == "step" and "tokens_per_second" in r]
    names = [f"{r['model']}\n{r['method']}" for r in steps]
    axes[1].barh(names, [r["tokens_per_second"] for r in steps])
    axes[1].set(xlabel="tokens/s", title="Training step of 8k tokens")
    axes[1].tick_params(axis="y", labelsize="x-small")
    gains = [r for r in records if r.get("case") == "gain" and "gain" in r]
    for model in dict.fromkeys(r["model"] for r in gains):
        line = sorted((r["r"], r["gain"]) for r in gains if r["model"] == model)
        axes[2].plot(*zip(*line, strict=True), "o-", label=model)
    if gains:
        ends = [min(r["r"] for r in gains), max(r["r"] for r in gains)]
        between = [ends[0] * (ends[1] / ends[0]) ** (i / 50) for i in range(51)]
        axes[2].plot(between, [(1 + r) / max(1, r) for r in between], color="grey", label="(1 + r) / max(1, r)")
    axes[2].set(xscale="log", xlabel="r = perceiving / speaking", ylabel="speed-up", title="Parallel over sequential")
    for axis in (axes[0], axes[2]):
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="x-small")
    figure.suptitle(title, fontsize="small")
    figure.savefig(file, dpi=110)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """What a run has written."""
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def report(out: Path) -> None:
    """Prints the tables and draws the picture of a run."""
    records = read_records(out)
    machine = json.loads((out / "machine.json").read_text())
    title = ", ".join(f"{key} {value}" for key, value in machine.items())
    lines = [title, *tables(records)]
    (out / "tables.md").write_text("\n".join(lines) + "\n")
    plot(records, out / "gpu.png", title)
    print("\n".join(lines))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="time for all parts (9)")
    parser.add_argument("--limit-s", type=float, default=600, help="most seconds of a part (its own limit)")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for results (runs/gpu)")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=[part.label for part in PARTS],
        help="kernels, attention, step, streaming, or 'script case' (all)",
    )
    parser.add_argument("--commit", default="", help="what is measured, where the copy has no history of its own")
    parser.add_argument("--dry-run", action="store_true", help="in miniature, on a CPU")
    parser.add_argument("--tables", type=Path, metavar="FOLDER", help="print the tables of a run and end")
    parser.add_argument("--wheels", action="store_true", help="print packages to carry along and end")
    args = parser.parse_args()
    if args.wheels:
        print(" ".join(WHEELS))
        return
    if args.tables:
        report(args.tables)
        return
    chosen = [part for part in PARTS if part.name in args.parts or part.label in args.parts]
    if not chosen:
        parser.error(f"no such part; choose from {', '.join(sorted({part.name for part in PARTS}))} or a 'script case'")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "records.jsonl").write_text("")
    (args.out / "machine.json").write_text(json.dumps(describe_machine(args.dry_run, args.commit)))
    run_parts(chosen, args.out, args.minutes, args.limit_s, args.dry_run)
    report(args.out)


if __name__ == "__main__":
    main()
