"""Costs read off compiled programs against what is known of them; compiled for TPUs that are not there."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest

from swjax.planning.hlo import Instruction, Shape, product_flops

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
