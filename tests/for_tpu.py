"""Programs that compile for TPUs, each in a process of its own: one can hold one TPU compiler, and the tests' none."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def found_by(program: str, *arguments: str) -> Any:
    """What a Python program prints as JSON behind `FOUND `, which it does last.

    Args:
        program: the text of the program.
        arguments: that it is given.
    """
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
            "TPU_SKIP_MDS_QUERY": "1",  # asks no cloud for the machine's own topology
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several test processes compile at once, and none holds a TPU
            "PYTHONPATH": str(Path(__file__).parents[1]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"(libtpu comes with the dev extra)\n{done.stderr[-3000:]}"
    return json.loads(done.stdout.split("FOUND ")[1])
