"""The compiler's clock: schedules read from a program's text, and bundles from what libtpu writes."""

import sys

import numpy as np
import pytest
from for_tpu import found_by

from swjax.attention.tpu_blocks import TPUBlocks, make_plan
from swjax.attention.tpu_work import count_tiles
from swjax.chips import CHIPS
from swjax.planning.bundles import read_blocks
from swjax.planning.clock import read_schedule
from swjax.planning.hlo import read_costs
from swjax.streaming import KeySpans

# ruff: noqa: E501 (a program's text has long lines)

# One second is a cycle here, and a byte a second is sent.
PROGRAM = """\
HloModule jit_f, is_scheduled=true

FileNames
1 "/home/me/swjax/models/layers.py"
2 "/home/me/lib/jax.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=9 end_line=9 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%zeros (p: f32[]) -> f32[8] {
  %p = f32[] parameter(0)
  ROOT %b = f32[8]{0} broadcast(%p), dimensions={}
}

%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%t), index=1
  %start = (f32[8]{0}, f32[16]{0}) all-gather-start(%x), replica_groups={{0,1}}, dimensions={0}
  %work = f32[8]{0} fusion(%x), kind=kLoop, calls=%zeros, metadata={op_name="jit(f)/while/body/mlp/add" stack_frame_id=2}, backend_config={"estimated_cycles":"20"}
  %done = f32[16]{0} all-gather-done(%start)
  %n = s32[] get-tuple-element(%t), index=0
  ROOT %out = (s32[], f32[8]{0}) tuple(%n, %work)
}

%condition (t: (s32[], f32[8])) -> pred[] {
  %t = (s32[], f32[8]{0}) parameter(0)
  %n = s32[] get-tuple-element(%t), index=0
  %limit = s32[] constant(3)
  ROOT %less = pred[] compare(%n, %limit), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %moved = f32[8]{0} copy(%x), backend_config={"estimated_cycles":"5"}
  %span_attention_forward.1 = f32[8]{0} custom-call(%moved), custom_call_target="tpu_custom_call"
  %all = f32[8]{0} all-reduce(%moved), replica_groups={{0,1}}, to_apply=%zeros
  %zero = s32[] constant(0)
  %given = (s32[], f32[8]{0}) tuple(%zero, %all)
  %loop = (s32[], f32[8]{0}) while(%given), condition=%condition, body=%body
  ROOT %r = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


def read(text):
    return read_schedule(text, clock=1.0, peak_flops=2.0, link_bandwidth=1.0, kernel_cycles=lambda call: 100.0)


def test_a_program_takes_its_operations_as_often_as_they_run_and_what_is_not_hidden():
    schedule = read(PROGRAM)
    seconds = {operation.name: (operation.runs, operation.seconds) for operation in schedule.operations}
    assert seconds == {"moved": (1, 5), "span_attention_forward.1": (1, 100), "work": (3, 60)}
    # The sum over two chips sends all of 32 bytes and hides nothing; a gather sends 32 and is hidden for 20.
    assert schedule.sent == 32 + 3 * 32
    assert schedule.exposed == 32 + 3 * 12
    assert schedule.seconds == 5 + 100 + 60 + 32 + 36
    assert schedule.unknown_loops == 0


def test_transfers_that_are_begun_together_wait_for_one_another():
    two = PROGRAM.replace(
        "  %work =",
        "  %second = (f32[8]{0}, f32[16]{0}) all-gather-start(%x), replica_groups={{0,1}}, dimensions={0}\n  %work =",
    ).replace(
        "  %n = s32[] get-tuple-element(%t), index=0\n  ROOT %out",
        "  %last = f32[16]{0} all-gather-done(%second)\n  ROOT %out",
    )
    assert read(two).exposed == 32 + 3 * (12 + 32)


def test_a_collective_that_is_divided_among_fusions_is_sent_once_and_hidden_by_those_between():
    """As the TPU compiler writes what it lets a product carry on."""
    fused = "".join(
        f"""%{name} (p.{name}: f32[8]) -> f32[16] {{
  %p.{name} = f32[8]{{0}} parameter(0)
  %gather.{name} = f32[16]{{0}} all-gather(%p.{name}), channel_id=7, replica_groups={{{{0,1}}}}, dimensions={{0}}
  ROOT %r.{name} = f32[16]{{0}} {root}(%gather.{name}){target}
}}

"""
        for name, root, target in (
            ("begin", "custom-call", ', custom_call_target="AsyncCollectiveStart"'),
            ("carry", "copy", ""),
            ("end", "custom-call", ', custom_call_target="AsyncCollectiveDone"'),
        )
    )
    divided = (
        PROGRAM.replace("%body (t", fused + "%body (t")
        .replace(
            "(f32[8]{0}, f32[16]{0}) all-gather-start(%x), replica_groups={{0,1}}, dimensions={0}",
            "f32[16]{0} fusion(%x), kind=kCustom, calls=%begin",
        )
        .replace("fusion(%x), kind=kLoop, calls=%zeros", "fusion(%x), kind=kLoop, calls=%carry")
        .replace("all-gather-done(%start)", "fusion(%start), kind=kCustom, calls=%end")
    )
    assert divided.count("calls=%") == 3
    schedule, costs = read(divided), read_costs(divided, axes_of=lambda group: ("all",))
    assert (schedule.sent, schedule.exposed) == (32 + 3 * 32, 32 + 3 * 12)
    assert sum(costs.sent.values()) == schedule.sent


def test_a_sum_on_the_sparse_cores_is_hidden_by_what_stands_between():
    offloaded = (
        PROGRAM.replace(
            "%body (t",
            """%on_sparse_core (g: f32[8], k: token[]) -> f32[8] {
  %k = token[] parameter(1)
  %g = f32[8]{0} parameter(0)
  ROOT %sum = f32[8]{0} all-reduce(%g), channel_id=7, replica_groups={{0,1}}, to_apply=%zeros
}, execution_thread="sparsecore"

%body (t""",
        )
        .replace(
            "(f32[8]{0}, f32[16]{0}) all-gather-start(%x), replica_groups={{0,1}}, dimensions={0}",
            "((f32[8]{0}, token[]), f32[8]{0}) call-start(%x), to_apply=%on_sparse_core",
        )
        .replace("f32[16]{0} all-gather-done(%start)", "f32[8]{0} call-done(%start)")
    )
    schedule, costs = read(offloaded), read_costs(offloaded, axes_of=lambda group: ("all",))
    assert (schedule.sent, schedule.exposed) == (32 + 3 * 32, 32 + 3 * 12)
    assert sum(costs.sent.values()) == schedule.sent


def test_a_product_takes_no_less_than_at_the_peak_rate():
    multiplying = PROGRAM.replace(
        "%zeros (p: f32[])",
        """%multiplied (a: f32[4,8], b: f32[8,2]) -> f32[4,2] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[8,2]{1,0} parameter(1)
  ROOT %c = f32[4,2]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
}

%zeros (p: f32[])""",
    ).replace(
        "  %moved =",
        "".join(
            f"  %{name} = f32[4,2]{{1,0}} fusion(%x, %x), kind=kOutput, calls=%multiplied, "
            f'backend_config={{"estimated_cycles":"{cycles}"}}\n'
            for name, cycles in (("quick", 5), ("slow", 500))
        )
        + "  %moved =",
    )
    seconds = {operation.name: operation.seconds for operation in read(multiplying).operations}
    assert (seconds["quick"], seconds["slow"]) == (2 * 4 * 8 * 2 / 2, 500)


def test_scatters_and_sorts_without_cycles_are_named_and_take_none():
    scattering = PROGRAM.replace(
        "%zeros (p: f32[])",
        """%scattered (s: f32[8]) -> f32[8] {
  %s = f32[8]{0} parameter(0)
  ROOT %w = f32[8]{0} fusion(%s), kind=kCustom, calls=%within
}

%within (u: f32[8]) -> f32[8] {
  %u = f32[8]{0} parameter(0)
  ROOT %z = f32[8]{0} scatter(%u, %u, %u), to_apply=%zeros
}

%zeros (p: f32[])""",
    ).replace(
        "  %moved =",
        "  %scatter_fusion = f32[8]{0} fusion(%x), kind=kCustom, calls=%scattered, metadata={stack_frame_id=1}\n"
        "  %sort.1 = f32[8]{0} sort(%x), dimensions={0}\n  %moved =",
    )
    schedule = read(scattering)
    assert [(one.name, one.source, one.seconds) for one in schedule.untimed()] == [
        ("scatter_fusion", "swjax/models/layers.py:7", 0.0),
        ("sort.1", "", 0.0),
    ]
    assert schedule.seconds == read(PROGRAM).seconds
    assert read(PROGRAM).untimed() == []
    assert {one.name for one in schedule.most_expensive()} == {"moved", "span_attention_forward.1", "work"}


def test_operations_name_their_line_in_this_package_their_path_and_their_waste():
    moved, kernel, work = read(PROGRAM).operations
    assert (work.source, work.path, work.waste) == ("swjax/models/layers.py:7", "mlp/add", "fills")
    assert (moved.source, moved.waste) == ("", "copies")
    assert kernel.kind == "kernel"
    assert read(PROGRAM).waste() == {"copies": 5, "transposes": 0, "converts": 0, "fills": 60}
    assert [one.name for one in read(PROGRAM).most_expensive(2)] == ["span_attention_forward.1", "work"]


@pytest.mark.parametrize("units", [2, 4])
def test_blocks_of_bundles_are_cut_at_branches(tmp_path, units):
    lines = [
        "",
        "     0   :  { %1 = start }",
        "   0x1   : > { %2 = grid }",
        "   0x2 LB: >> { %3 = tile }",
        "   0x3   :  {}",
    ]
    lines += ["   0x4   : >> { %4 = sbr.rel (%p) target = $region1 }", "   0x5 PF: > { %5 = end }"]
    (tmp_path / "17-span_attention_forward.1-02-final_bundles.txt").write_text("\n".join(lines))
    (tmp_path / "17-span_attention_forward.1-01-schedule-analysis_final_bundles.txt").write_text("")
    rows = ["0 0 0 0 0 0 0 0 0 1", "0 0 0 0 0 0 1 0 0 0"]
    rows += [f"{units} 0 0 0 0 0 0 0 2 0", f"{units // 2} 0 0 0 0 0 0 0 0 0"] + ["0 " * 10] * 2
    names = "MXU, XLU, VALU, VPOP, EUP, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL, SALU"
    table = (
        f"== CAPACTIY:\n{names}\n    {units}     3     4     2     1     3     3     1     1     2\n== UTILIZATION:\n"
        + "\n".join(rows)
    )
    (tmp_path / "17-span_attention_forward.1-00-final_hlo-static-per-bundle-utilization.txt").write_text(table)
    (blocks,) = read_blocks(tmp_path).values()
    assert [(block.depth, block.bundles, block.matrix) for block in blocks] == [
        (1, 2, 0.0),
        (2, 2, 0.75),
        (2, 1, 0.0),
        (1, 1, 0.0),
    ]
    assert [(block.fills, block.spills) for block in blocks] == [(1, 0), (0, 2), (0, 0), (0, 0)]


@pytest.mark.parametrize("group", [1, 3, 7])
@pytest.mark.parametrize("length", [100, 1300])
def test_tiles_are_those_that_the_kernel_goes_through(length, group):
    rng = np.random.default_rng(length + group)
    start = np.sort(rng.integers(0, length // 2, length))
    spans = KeySpans(start, np.minimum(start + rng.integers(0, length // 2, length), length))
    blocks = TPUBlocks(rows=256, queries=128, keys=512, tile=256)
    shape = type("Shape", (), {"shape": (1, length, group, 128), "dtype": np.dtype(np.float32)})()
    plan = make_plan(shape, 1, length, blocks, rows=blocks.rows, keys=blocks.keys)
    whole = masked = 0
    for first in range(0, length, plan.queries):
        seen = [
            (a, b)
            for a, b in zip(
                spans.start[first : first + plan.queries], spans.stop[first : first + plan.queries], strict=True
            )
        ]
        is_full = len(seen) == plan.queries
        for key in range(0, max(b for _, b in seen), plan.tile):
            if any(a < key + plan.tile and key < b for a, b in seen if a < b) or (
                min((a for a, b in seen if a < b), default=0) < key + plan.tile
            ):
                all_see = is_full and all(a <= key and key + plan.tile <= b for a, b in seen)
                whole, masked = whole + all_see, masked + (not all_see)
    assert count_tiles(spans, plan) == (whole, masked)


def test_clocks_are_those_at_which_the_matrix_units_do_what_the_maker_states():
    clocks = {name: chip.clock for name, chip in CHIPS.items() if chip.clock}
    assert clocks == {
        "TPU v5 lite": pytest.approx(1.5e9, rel=0.003),
        "TPU v5": pytest.approx(1.75e9, rel=0.003),
        "TPU v6 lite": pytest.approx(1.75e9, rel=0.003),
    }


TOY = """
import json
import jax, jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import SingleDeviceSharding
from swjax.planning.kernels import kernel_blocks
from swjax.planning.topology import open_topology

device = open_topology("v5p:2x2x1")[0]
def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.bfloat16, sharding=SingleDeviceSharding(device))
def multiply(a, b, out):
    out[...] = jnp.dot(a[...], b[...], preferred_element_type=jnp.float32)
def product(a, b, name):
    rows = pl.BlockSpec((len(a) // 4, 128), lambda i: (i, 0))
    return pl.pallas_call(
        multiply, grid=(4,), name=name, in_specs=[rows, pl.BlockSpec((128, 128), lambda i: (0, 0))], out_specs=rows,
        out_shape=jax.ShapeDtypeStruct((len(a), 128), jnp.float32),
    )(a, b)
def all_three(a, b, c):
    return product(a, c, "short"), product(a + a, c, "short"), product(b, c, "long")
compiled = jax.jit(all_three).lower(shape(512, 128), shape(1024, 128), shape(128, 128)).compile()
print("FOUND", json.dumps({
    name: [(block.depth, 4 * block.matrix * block.bundles) for block in blocks if block.matrix]
    for name, blocks in kernel_blocks(compiled.as_text(), "v5p:2x2x1", {}).items()
}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="libtpu is for Linux")
def test_kernels_of_a_program_fill_as_many_slots_as_their_products_have_rows():
    found = found_by(TOY)
    assert sorted(name.partition(".")[0] for name in found) == ["long", "short", "short"]
    filled = {name.partition(".")[0]: blocks for name, blocks in found.items()}
    ((depth, short),), ((same_depth, long),) = filled["short"], filled["long"]
    assert depth == same_depth == 1  # in the loop over the grid
    # Each turn multiplies 128 or 256 rows; a slot takes eight, and as many are filled with the 128 x 128 in both.
    assert long - short == pytest.approx((256 - 128) / 8)
    assert short > 128 / 8
    assert [blocks for name, blocks in found.items() if name.startswith("short")] == [filled["short"]] * 2


COMPILE = """
import functools, json
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from swjax.attention.tpu import make_tpu_kernel, tpu_kernel
from swjax.attention.tpu_blocks import TPUBlocks
from swjax.chips import chip_of
from swjax.planning.clock import read_schedule
from swjax.planning.kernels import kernel_blocks
from swjax.planning.topology import open_topology
from swjax.streaming import KeySpans

device = open_topology("v5p:2x2x1")[0]
def shape(dims, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(dims, dtype, sharding=SingleDeviceSharding(device))
def tiles(compiled):
    return {
        name.rpartition(".")[0] or name: [block.bundles for block in blocks if block.matrix > 0.3]
        for name, blocks in kernel_blocks(compiled.as_text(), "v5p:2x2x1", {}).items()
    }
def both(kernel, q, k, v, start, stop):
    spans = KeySpans(start, stop)
    out, lse = kernel.forward(q, k, v, spans)
    return kernel.backward(q, k, v, spans, out, lse, out)
q, k = shape((1, 2048, 28, 128)), shape((1, 2048, 4, 128))
edge = shape((1, 2048), jnp.int32)
def compile(blocks):
    return tiles(jax.jit(functools.partial(both, make_tpu_kernel(blocks))).lower(q, k, k, edge, edge).compile())
found = {"training": compile(TPUBlocks()) | compile(TPUBlocks(key_bytes=0))}
def decode(q, k, v, layer, start, stop):
    return tpu_kernel.cache(q, k, v, layer, KeySpans(start, stop))
one, stored, edge = shape((1, 1, 28, 128)), shape((2, 1, 4, 16384, 128)), shape((1, 1), jnp.int32)
word = jax.jit(decode).lower(one, stored, stored, shape((), jnp.int32), edge, edge).compile()
found["decode"] = tiles(word)["span_attention_forward"]
product = jax.jit(lambda a, b: jax.nn.silu(a @ b)).lower(shape((8192, 3584)), shape((3584, 18944))).compile()
chip = chip_of(device.device_kind)
clock = chip.clock
found["bytes"] = 2 * 2048 * 128 * 2 / (chip.memory_bandwidth / chip.cores) * clock
schedule = read_schedule(
    product.as_text(), clock=clock, peak_flops=chip.flops, link_bandwidth=1.0, kernel_cycles=lambda call: 0.0
)
found["product"] = schedule.seconds
found["compiler"] = product.cost_analysis()["optimal_seconds"]
print("FOUND", json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="libtpu is for Linux")
def test_the_compiler_s_clock_of_a_product_and_of_the_kernels():
    """A bar: the bundles of a tile of Qwen2.5-VL 7B's attention may not grow by more than a twentieth."""
    found = found_by(COMPILE)
    bundles = found["training"]
    # Of 512 keys and 3,584 rows forward, 896 backward, on v5p (libtpu 0.0.51): where all rows see all keys, and masked.
    bar = {
        "span_attention_forward": [7869, 8754],
        "span_attention_gradients": [4251, 4042],
        "span_attention_key_gradients": [3349, 3352],
        "span_attention_query_gradient": [2514, 2579],
    }
    assert set(bundles) == set(bar)
    for name, bounds in bar.items():
        for of_tile, bound in zip((bundles[name][0], bundles[name][-1]), bounds, strict=True):
            assert of_tile <= 1.05 * bound, name
    # A word's tile of 2,048 keys: keys and values take as long to come, so at least 90 % of the memory's rate are used.
    assert found["decode"][0] <= 1.05 * 1354
    assert found["bytes"] >= 0.9 * found["decode"][0]
    # 5,126,604 cycles; the compiler's own total of the same program is a little less.
    assert found["product"] == pytest.approx(2.93e-3, rel=0.03)
    assert found["product"] == pytest.approx(found["compiler"], rel=0.05)
