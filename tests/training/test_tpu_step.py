"""A training step compiled ahead of time for a TPU slice, by the compiler that runs on its hosts. Needs no TPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="libtpu is for Linux")
def test_a_sharded_step_compiles_without_mask_or_logits():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
        "JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1.0",  # the same arrays, in less than half of the time
        "TPU_SKIP_MDS_QUERY": "1",  # asks no cloud for the machine's own topology
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several test processes compile at once, and none holds a TPU
    }
    script = Path(__file__).with_name("compile_step_for_tpu.py")
    done = subprocess.run(
        [sys.executable, script, "v5p:2x2x1", json.dumps({"fsdp": 2, "tensor": 2})],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"(libtpu comes with the dev extra)\n{done.stderr[-4000:]}"
    assert "nvoluntary full rematerialization" not in done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    # Forward in the decoder and in the frozen vision tower, and the decoder's backward kernel: under `minimal`
    # attention is not run forward again.
    assert told["kernels"] == 3
    # The gradient of the embedding; whatever else is looked up is looked up once, and its gradient is picked.
    assert told["scatters"] == 1
    assert told["dense"] == []
    assert told["logits"] == []
    # The state is donated: what comes out lies where it came in, but for the metrics.
    assert told["output_bytes"] - told["alias_bytes"] < 2**16
    # Gradients twice, and a few times the activations; logits of all labels alone would be 540 MB.
    assert told["temp_bytes"] < 2 * told["argument_bytes"]
