"""Span attention compiled ahead of time for TPUs, by the compiler that runs on their hosts. Needs no TPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LONG, SHORTER, CACHED = ("decoder", "vision"), ("a row", "the longest row"), ("one step", "eight steps")
CASES = {
    "v5e:2x2": ("decoder", "the longest row", "one step"),
    "v5p:2x2x1": (*LONG, *SHORTER, *CACHED, "ends inside of blocks", "float32", "context"),
    "v6e:2x2": (*LONG, "the longest row", "eight steps"),
    "tpu7x:2x2x1": ("decoder", "the longest row", "eight steps"),
}
"""Chip -> cases of `compile_for_tpu.py`: all for one, and for the others what differs with a chip's sizes."""

ONE_BYTE_A_SCORE = 32768 * 32768


@pytest.fixture(scope="module", params=CASES)
def compiled(request):
    """What `compile_for_tpu.py` tells of each case."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
        "JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1.0",
        "TPU_SKIP_MDS_QUERY": "1",  # asks no cloud for the machine's own topology
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several test processes compile at once, and none holds a TPU
    }
    script = Path(__file__).with_name("compile_for_tpu.py")
    done = subprocess.run(
        [sys.executable, script, request.param, *CASES[request.param]],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"(libtpu comes with the dev extra)\n{done.stderr[-4000:]}"
    return {told["case"]: told for told in map(json.loads, done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="libtpu is for Linux")
def test_compiles(compiled):
    for case, told in compiled.items():
        if case in CACHED:
            assert told["kernels"] == 1, case
            # The cache is read where it lies.
            assert told["temp_bytes"] < told["argument_bytes"] / 20, case
        else:
            # Over long rows the backward pass is two kernels.
            assert told["kernels"] == (3 if case in (*LONG, "context") else 2), case
        if case in LONG:
            # A few copies of queries, keys and values, and nothing of the size of the scores of one head.
            assert told["temp_bytes"] < min(4 * told["argument_bytes"], ONE_BYTE_A_SCORE)
    if "context" in compiled:
        assert compiled["context"]["temp_bytes"] < compiled["decoder"]["temp_bytes"]
