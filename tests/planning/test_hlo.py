"""Costs read off compiled programs against what is known of them; compiled for TPUs that are not there."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest

from swjax.planning.hlo import Instruction, Shape, product_flops, read_costs

HERE = Path(__file__).parent


def convolution(left, right, out, rest):
    shapes = [Shape("bf16", dims, True) for dims in (left, right, out)]
    return product_flops(Instruction("c", (shapes[2],), "convolution", ("a", "b"), rest), shapes[:2])


@pytest.mark.parametrize(
    ("left", "right", "out", "rest", "flops"),
    [
        # A product of two matrices.
        ((30, 20), (20, 10), (30, 10), "dim_labels=bf_io->bf", 2 * 30 * 20 * 10),
        # Queries, keys and values of 16 heads at once: a window over an input of one place, each meets it once.
        (
            (40, 20, 1, 1),
            (20, 3, 16, 80),
            (40, 3, 16, 80),
            "window={size=3x16 pad=2_2x15_15 rhs_reversal=1x1}, dim_labels=bf01_i01o->b01f",
            2 * 40 * 20 * 80 * 3 * 16,
        ),
        # A sum over a window as large as the input.
        ((40, 16, 80), (16, 80, 10), (40, 1, 10), "window={size=16}, dim_labels=b0f_0io->b0f", 2 * 40 * 16 * 80 * 10),
        # Padding is not multiplied: two of three places of the window at each end.
        ((1, 4, 1), (3, 1, 1), (1, 4, 1), "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f", 2 * (2 + 3 + 3 + 2)),
    ],
)
def test_convolutions(left, right, out, rest, flops):
    assert convolution(left, right, out, rest) == flops


# As the TPU compiler writes what lies on the chip (S(1)), what is fetched ahead, and what fusions hand on.
MOVING = """\
HloModule jit_f, is_scheduled=true

%renamed (a: bf16[64,32]) -> bf16[64,32] {
  %a = bf16[64,32]{1,0} parameter(0)
  ROOT %b = bf16[64,32]{1,0} bitcast(%a)
}

%multiplied (x: bf16[8,64], w: bf16[64,32]) -> bf16[8,32] {
  %x = bf16[8,64]{1,0} parameter(0)
  %w = bf16[64,32]{1,0} parameter(1)
  %seen = bf16[64,32]{1,0} fusion(%w), kind=kLoop, calls=%renamed
  ROOT %y = bf16[8,32]{1,0} convolution(%x, %seen), dim_labels=bf_io->bf
}

ENTRY %main (x: bf16[8,64], w: bf16[64,32], stored: bf16[36,1024]) -> bf16[8,32] {
  %x = bf16[8,64]{1,0:S(1)} parameter(0)
  %w = bf16[64,32]{1,0} parameter(1)
  %stored = bf16[36,1024]{1,0} parameter(2)
OPERATION
}
"""


@pytest.mark.parametrize(
    ("operation", "moved"),
    [
        # The product reads its weight, which a fusion within hands on, and writes its result on the chip.
        ("%y = bf16[8,32]{1,0:S(1)} fusion(%x, %w), kind=kOutput, calls=%multiplied", 64 * 32 * 2),
        # A quarter of a weight is fetched; the whole that stands beside it is that of which it is a part.
        (
            "%y = ((bf16[64,32]{1,0}), bf16[16,32]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%w), slice={[0:16], [0:32]}",
            16 * 32 * 2,
        ),
        ("%y = (bf16[64,32]{1,0:S(1)}, bf16[64,32]{1,0}, u32[]{:S(2)}) copy-start(%w)", 64 * 32 * 2),
        # Written to memory, too.
        ("%y = bf16[16,32]{1,0} slice(%w), slice={[0:16], [0:32]}", 2 * 16 * 32 * 2),
        # A kernel that is given all layers and says that it fetches a part; one that would fetch keys again and again.
        *[
            (
                '%y = bf16[8,64]{1,0:S(1)} custom-call(%x, %stored), custom_call_target="tpu_custom_call", '
                f'backend_config={{"custom_call_config":{{"cost_estimate":{{"bytes_accessed":"{stated}"}}}}}}',
                moved,
            )
            for stated, moved in ((2048, 2048), (10**9, 36 * 1024 * 2))
        ],
    ],
)
def test_bytes_moved_are_those_that_must_come_from_memory_or_go_there(operation, moved):
    costs = read_costs(MOVING.replace("OPERATION", f"  ROOT {operation}"), axes_of=lambda devices: ())
    assert costs.bytes == moved


@functools.cache
def compiled_costs():
    """In a process of its own: the TPU compiler and the tests' eight CPU devices do not like each other's flags."""
    script = HERE / "costs_of_small_programs.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(line.split("=") for line in done.stdout.split())


def test_loops_count_as_often_as_they_run():
    found = compiled_costs()
    assert float(found["scan_flops"]) == 7 * 2 * 64 * 256 * 256
    assert found["scan_unknown"] == "0"


def test_products_with_batches():
    assert float(compiled_costs()["batched_flops"]) == 2 * 4 * 128 * 128 * 128


def test_collectives():
    # A weight of 512 x 512 bfloat16 numbers, a quarter on each of four devices: a device sends its quarter three times,
    # or twice as much where the compiler makes a sum of it.
    quarter = 512 * 128 * 2
    assert float(compiled_costs()["gathered"]) in (3 * quarter, 6 * quarter)
