"""Real processes that load and save one checkpoint together."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from swjax.hub import load_hf, save_hf

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_qwen2_5_vl"
PROCESSES = 2


def test_two_processes_write_what_one_writes(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    script = Path(__file__).with_name("two_processes.py")
    words = [str(GOLDEN), str(tmp_path / "two")]
    started = [
        subprocess.Popen(
            [sys.executable, script, coordinator, str(PROCESSES), str(process), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(PROCESSES)
    ]
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * PROCESSES, said

    save_hf(load_hf(GOLDEN), tmp_path / "one", max_shard_size="200KB")
    ours, theirs = ({file.name for file in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert ours == theirs
    assert len(ours) > 4, "several files each"
    for name in ours:
        if name.endswith(".json"):
            assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()
            continue
        one, two = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
        assert one.keys() == two.keys()
        for tensor in one:
            np.testing.assert_array_equal(one[tensor], two[tensor], err_msg=tensor)

    # Each process read its half, and whole only what four devices do not divide or a slice of no file can give.
    for out, _ in said:
        assert float(re.search(r"read (\S+)", out)[1]) < 0.7
