"""Span attention compiled ahead of time for TPUs, by the compiler that runs on their hosts. Needs no TPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
ONE_BYTE_A_SCORE = 32768 * 32768


@pytest.fixture(scope="module", params=TOPOLOGIES)
def compiled(request):
    """What `compile_for_tpu.py` tells of each case."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "TPU_SKIP_MDS_QUERY": "1",  # asks no cloud for the machine's own topology
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several test processes compile at once, and none holds a TPU
    }
    script = Path(__file__).with_name("compile_for_tpu.py")
    done = subprocess.run(
        [sys.executable, script, request.param], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"(libtpu comes with the dev extra)\n{done.stderr[-4000:]}"
    return {told["case"]: told for told in map(json.loads, done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="libtpu is for Linux")
def test_compiles(compiled):
    for case in ("decoder", "vision", "ends inside of blocks", "float32", "context"):
        assert compiled[case]["kernels"] == 3, case
    # A few copies of queries, keys and values, and nothing of the size of the scores of one head.
    assert compiled["decoder"]["temp_bytes"] < min(4 * compiled["decoder"]["argument_bytes"], ONE_BYTE_A_SCORE)
    assert compiled["vision"]["temp_bytes"] < min(4 * compiled["vision"]["argument_bytes"], ONE_BYTE_A_SCORE)
    assert compiled["context"]["temp_bytes"] < compiled["decoder"]["temp_bytes"]
    for case in ("one step", "eight steps"):
        assert compiled[case]["kernels"] == 1, case
        # The cache is read where it lies.
        assert compiled[case]["temp_bytes"] < compiled[case]["argument_bytes"] / 20, case
