"""`swjax plan`: what a run will take of chips that are not at hand."""

from __future__ import annotations

import argparse
import collections
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from swjax.commands.mesh_arguments import add_mesh_argument, read_mesh
from swjax.commands.say import any_path, console, refuse

if TYPE_CHECKING:
    from swjax.planning.estimate import Estimate
    from swjax.planning.plan import Plan

NAME = "plan"
HELP = "compile a run for a TPU slice that you do not have, and say whether it fits and how long it takes"

DESCRIPTION = """\
Compile the training step of a configuration for a TPU slice that need not be there, and print what it takes of each
chip: memory for parameters, optimizer, batch and activations against what the chip has; operations, bytes moved and
bytes sent, with the least time that each takes; tokens a second, and days for a number of hours of video.

The step is the real one, sharded as config.mesh says, with the kernels of that chip. Rows are taken to be full: a video
of a frame a second in each. Two times are printed. The roofline is what the busiest resource takes at its maker's rate;
no step is faster. The estimate is the compiler's own clock: cycles of every operation in the order of its schedule,
bundles of the attention kernels, and what is sent and not hidden. It leaves out what no compiler knows: input, hosts,
and links that others use. --explain lists the most expensive operations with their lines, and what is waste. GPUs and
TPU7x have a roofline alone.

--search compiles other meshes, remat policies and batch shapes with as many rows to a step, and recommends the one that
trains most tokens a second by the estimate and leaves a tenth of the memory. Compiling a model of 7B takes minutes on
two cores, and each candidate takes as long.
"""
EXAMPLE = """\
examples:
  swjax plan --config configs/pe_video_7b.py --model 7b --topology v5p:4x4x4 --config.mesh.fsdp=64
  swjax plan --config configs/pe_video_7b.py --model 7b --topology v6e:8x8 --search --video-hours 1000
  swjax plan --config configs/pe_video_7b.py --model 7b --topology v5e:16x16 --slices 2 --config.mesh.data=2
  swjax plan --config configs/pe_video_7b.py --model 7b --topology v5e:8x8 --json > plan.json
  swjax plan --config configs/pe_video_7b.py --model 7b --topology v6e:2x2 --streaming --rows 8
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the verb; overrides of the configuration stay over for `run`."""
    parser.add_argument(
        "--config", type=any_path, required=True, metavar="FILE", help="configuration file, or a name: moving_shapes"
    )
    parser.add_argument(
        "--topology", required=True, help="v5e:4x8, v5p:4x4x4, v6e:8x8, tpu7x:2x2x1 ...; local = this machine's devices"
    )
    parser.add_argument(
        "--slices", type=int, default=1, help="slices that the data-centre network joins; mesh.data runs over them"
    )
    parser.add_argument("--model", help="size of the released models: 3b, 7b, 32b, 72b (default: the configuration's)")
    parser.add_argument(
        "--search", action="store_true", help="try meshes, remat policies and batch shapes, and recommend one"
    )
    parser.add_argument("--most", type=int, default=8, help="with --search, most candidates to compile (default: 8)")
    parser.add_argument(
        "--explain", action="store_true", help="list the most expensive operations, their source lines, and waste"
    )
    parser.add_argument("--video-hours", type=float, default=1000.0, help="hours of video to plan for (default: 1000)")
    parser.add_argument(
        "--streaming",
        action="store_true",
        help="plan the streaming engine's pass, on one chip or a --mesh",
    )
    add_mesh_argument(parser)
    parser.add_argument("--rows", type=int, default=1, help="with --streaming, streams at once (default: 1)")
    parser.add_argument(
        "--pass-tokens", type=int, default=65, help="with --streaming, tokens of a stream in one pass (default: 65)"
    )
    parser.add_argument(
        "--slots", type=int, default=16384, help="with --streaming, slots of its cache (default: 16384)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Runs the verb.

    Returns:
        0, 2 where no plan can be made of the configuration, or 1 if it does not fit.
    """
    from swjax.planning.plan import OutOfMemoryError, best, candidates, make_plan
    from swjax.planning.topology import PlanError, open_topology
    from swjax.training.config import ConfigError
    from swjax.training.config_file import load_config

    out = console()
    try:
        config = load_config(args.config, extra)
        model = _model(args.model, config)
        devices = open_topology(args.topology, slices=args.slices)
        if args.streaming:
            return _plan_streaming(args, config, model, read_mesh(args, devices) or devices[0], out)
        if not args.search:
            plans = [make_plan(config, model, args.topology, devices, slices=args.slices)]
        else:
            plans, found = [], list(candidates(config, model, len(devices), slices=args.slices))
            if not found:
                raise PlanError(
                    f"no mesh of {len(devices)} chips divides a step of {config.batch_size or 1} x "
                    f"{config.accumulation} rows; set --config.batch_size or --config.accumulation"
                )
            for number, tried in zip(range(args.most), found, strict=False):
                shown = (
                    f"{number + 1}: mesh {_mesh(asdict(tried.mesh))}, {tried.batch_size} x {tried.accumulation} rows, "
                    f"remat {tried.remat}"
                )
                try:
                    plans.append(make_plan(tried, model, args.topology, devices, slices=args.slices))
                    said = f"{plans[-1].tokens_per_second:,.0f} tokens/s, {plans[-1].spare:.0%} of the memory spare"
                except OutOfMemoryError as error:
                    said = str(error).split(";")[0]
                except ConfigError as error:
                    said = f"not possible: {error}"
                if not args.json:
                    out.print(f"{shown}: {said}", soft_wrap=True)
    except OutOfMemoryError as error:
        refuse(error)
        return 1
    except (ConfigError, PlanError, ValueError) as error:
        return refuse(error)
    chosen = best(plans)
    if args.json:
        shown_plans = [plan.to_json() | {"days": plan.days(args.video_hours)} for plan in plans]
        print(json.dumps({"plans": shown_plans, "best": None if chosen is None else plans.index(chosen)}, indent=2))
    else:
        for plan in plans if not args.search else [chosen] if chosen else []:
            _show(out, plan, args.video_hours)
            if args.explain:
                _explain(out, plan)
    if chosen is None:
        return refuse("no plan fits with a tenth of the memory to spare") and 1
    if args.search and not args.json:
        settings = " ".join(f"--config.mesh.{axis}={size}" for axis, size in chosen.mesh.items())
        out.print(
            f"recommended: {settings} --config.remat={chosen.remat} --config.batch_size={chosen.rows.count} "
            f"--config.accumulation={chosen.accumulation}",
            soft_wrap=True,
        )
    return 0


def _plan_streaming(args: argparse.Namespace, config: Any, model: Any, place: Any, out: Console) -> int:
    from swjax.planning.streaming import plan_streaming

    sizes = {"rows": args.rows, "size": args.pass_tokens, "slots": args.slots}
    plan = plan_streaming(model, place, **sizes, dtype=config.dtype, topology=args.topology)
    if args.json:
        print(json.dumps(plan.to_json(), indent=2))
        return 0
    place = _mesh(dict(plan.mesh)) if plan.mesh else "one"
    out.print(
        f"{place} {plan.device_kind}: {plan.rows} streams, {plan.size} tokens of each in a pass, "
        f"{plan.slots:,} slots each",
        soft_wrap=True,
    )
    table = Table("memory", "GiB", box=None)
    for name in ("weights", "cache", "temporary", "peak", "capacity"):
        table.add_row(name, f"{getattr(plan, name) / 2**30:,.2f}")
    table.add_row("spare", f"{plan.spare:.0%}")
    out.print(table)
    times = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in plan.seconds.items())
    out.print(
        f"a pass takes at least {1e3 * plan.pass_seconds:.2f} ms ({times}): every stream speaks "
        f"{1 / plan.pass_seconds:,.0f} words a second and takes {(plan.size - 1) / plan.pass_seconds:,.0f} tokens of "
        "frames in meanwhile",
        soft_wrap=True,
    )
    if plan.advancing is None or plan.encoding is None:
        return 0
    out.print(
        f"estimate: {1e3 * plan.word_seconds:.2f} ms a word, {1e3 * plan.encoding.seconds:.2f} ms to encode a frame of "
        f"{plan.frame_tokens} tokens; {plan.frames_per_second:,.1f} frames a second of all streams together",
        soft_wrap=True,
    )
    if args.explain:
        for title, found in (("a pass", plan.advancing), ("encoding a frame", plan.encoding)):
            out.print(title)
            _explain_estimate(out, found)
    return 0


def _model(name: str | None, config: Any) -> Any:
    from swjax.models.family import preset_config
    from swjax.training.config import ConfigError

    chosen = name or config.model.preset
    if not chosen:
        raise ConfigError("the configuration takes its model's size from a checkpoint; name it with --model")
    return preset_config(chosen, **config.model.overrides)


def _mesh(sizes: dict[str, int]) -> str:
    return " x ".join(f"{axis}={size}" for axis, size in sizes.items() if axis != "slices" and size > 1) or "1"


def _show(out: Console, plan: Plan, video_hours: float) -> None:
    rows = plan.rows
    out.print(
        f"{plan.topology}: {plan.num_devices} x {plan.device_kind}, mesh {_mesh(dict(plan.mesh))}, remat {plan.remat}, "
        f"{rows.count} x {plan.accumulation} rows of {rows.tokens:,} tokens and {rows.patches:,} patches",
        soft_wrap=True,
    )
    table = Table("memory of a chip", "GiB", box=None)
    for name in ("parameters", "optimizer", "batch", "temporary", "peak", "capacity"):
        table.add_row(name, f"{getattr(plan, name) / 2**30:,.2f}")
    table.add_row("spare", f"{plan.spare:.0%}")
    out.print(table)
    amounts = {
        "compute": f"{(plan.flops or 0) / 1e12:,.1f} TFLOP",
        "memory": f"{(plan.moved or 0) / 1e9:,.1f} GB moved",
    }
    sent = dict(plan.sent or {})
    amounts["network"] = f"{sent.pop('slices', 0.0) / 1e9:,.1f} GB to other slices"
    amounts["links"] = f"{sum(sent.values()) / 1e9:,.1f} GB sent"
    table = Table("resource", "of a chip and step", "least time", box=None)
    for name, seconds in plan.seconds.items():
        table.add_row(name, amounts[name], f"{seconds:.3f} s" + (" <- limit" if name == plan.limit else ""))
    for axes, amount in sent.items():
        table.add_row(f"  sent over {axes}", f"{amount / 1e9:,.1f} GB", "")
    out.print(table)
    if plan.flops is None:
        out.print("the compiler shows no program for this chip: operations are those that the model's sizes ask for")
    needed = ", ".join(f"{part} {flops / 1e12:,.0f}" for part, flops in plan.needed_flops.items())
    out.print(f"needed by the model's sizes, TFLOP of all chips: {needed}", soft_wrap=True)
    out.print(f"roofline {plan.step_seconds:.3f} s ({plan.limit}), MFU {plan.mfu:.0%} at most", soft_wrap=True)
    if plan.estimate is not None:
        schedule = plan.estimate.schedule
        out.print(
            f"estimate {plan.estimate.seconds:.3f} s, MFU {plan.estimated_mfu:.0%}, {schedule.exposed:.3f} s of it "
            f"waiting for links (sending takes {schedule.sent:.3f} s, the rest is hidden)",
            soft_wrap=True,
        )
    days = f"{plan.days(video_hours):.1f} days for {video_hours:,.0f} hours of video"
    out.print(f"{plan.tokens_per_second:,.0f} tokens/s, {days}", soft_wrap=True)
    out.print(f"largest array {plan.largest or 'unknown'}; compiled in {plan.compile_seconds:.0f} s")


def _explain(out: Console, plan: Plan) -> None:
    if plan.estimate is None:
        out.print("the compiler gives no cycles for these chips, so nothing can be explained")
        return
    _explain_estimate(out, plan.estimate)


def _explain_estimate(out: Console, estimate: Estimate) -> None:
    table = Table("operation", "source", "runs", "ms", "share", box=None)
    for one in estimate.schedule.most_expensive():
        what = f"{one.path.rpartition(')/')[2] or one.name}" + (f" ({one.waste})" if one.waste else "")
        share = f"{one.seconds / estimate.seconds:.1%}"
        table.add_row(what, one.source, f"{one.runs:,.0f}", f"{1e3 * one.seconds:.3f}", share)
    out.print(table)
    wasted = {kind: seconds for kind, seconds in estimate.schedule.waste().items() if seconds}
    listed = ", ".join(f"{kind} {1e3 * seconds:.3f} ms" for kind, seconds in wasted.items())
    out.print(f"nothing but {listed}", soft_wrap=True)
    untimed = collections.Counter[str]()
    for one in estimate.schedule.untimed():
        untimed[one.source or one.name] += round(one.runs)
    if untimed:
        listed = ", ".join(f"{source} ({runs:,})" for source, runs in untimed.items())
        out.print(f"no cycles are told of the scatters and sorts of {listed}; their time is left out", soft_wrap=True)
    table = Table("kernel", "calls", "ms", "bundles", "masked", "pairs a bundle", "units full", box=None)
    for name, kernel in estimate.kernels.items():
        bundles = (f"{kernel.bundles:,}", f"{kernel.masked_bundles:,}", f"{kernel.pairs_a_bundle:.0f}")
        table.add_row(name, f"{kernel.calls:,.0f}", f"{1e3 * kernel.seconds:.3f}", *bundles, f"{kernel.matrix:.0%}")
    out.print(table)
