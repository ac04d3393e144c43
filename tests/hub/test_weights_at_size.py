"""Checkpoints with the widths and vocabularies of released models, in processes of their own that measure memory.

The whole of 3B, with all its layers, is measured by benchmarks/weights.py; here are a few layers of it.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "weights.py"
MIB = 2**20


def measure(*words: str) -> dict[str, dict]:
    done = subprocess.run([sys.executable, BENCHMARK, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {figures["step"]: figures for figures in map(json.loads, done.stdout.splitlines())}


@pytest.mark.slow
def test_memory_holds_one_file_and_never_the_model():
    figures = measure("--preset", "3b", "--layers", "4", "--max-shard-size", "300MB", "--devices", "4")
    written = figures["export"]
    assert written["files"] == 5
    assert written["bytes_on_disk"] > 1400 * MIB
    assert written["peak_bytes"] < written["largest_file_bytes"] + 100 * MIB
    assert figures["import"]["bit_identical"]
    assert figures["import"]["peak_bytes"] < written["bytes_on_disk"] - 400 * MIB
    loaded = figures["load"]
    assert loaded["parameter_bytes_on_devices"] < 1500 * MIB, "each parameter once, divided over the devices"
    assert loaded["peak_bytes"] < loaded["parameter_bytes_on_devices"] + 600 * MIB


@pytest.mark.slow
def test_two_layers_at_the_widths_of_7b_agree_with_transformers():
    pytest.importorskip("torch")
    words = ("--preset", "7b", "--layers", "2", "--max-shard-size", "2GB", "--only", "export", "verify")
    assert measure(*words)["verify"]["largest_relative_difference"] < 1e-4
