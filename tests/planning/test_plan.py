"""`swjax plan` of a tiny model for a slice that is not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from swjax.commands.main import main

CONFIG = """
from swjax.training.config import base_config

def get_config():
    config = base_config()
    config.data.train = "manifest.jsonl"
    config.model.preset = "tiny"
    config.data.max_tokens, config.data.max_patches, config.data.max_labels = 1024, 2048, 64
    config.batch_size, config.accumulation = 8, 2
    config.mesh.data, config.mesh.fsdp = 2, 2
    config.remat = "full"
    return config
"""


def plan(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    (folder / "config.py").write_text(CONFIG)
    return subprocess.run(
        [sys.executable, "-m", "swjax.commands.main", "plan", "--config", str(folder / "config.py"), *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
        | {"SWJAX_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="libtpu is for Linux")
def test_plan(tmp_path):
    done = plan(tmp_path, "--topology", "v5e:2x2", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)
    (found,) = answer["plans"]
    assert answer["best"] == 0
    assert (found["num_devices"], found["device_kind"]) == (4, "TPU v5 lite")
    assert found["mesh"] == {"data": 2, "fsdp": 2, "context": 1, "tensor": 1}
    # Two moments for each trained parameter; both in float32, so nearly twice the parameters' bytes.
    assert 1 < found["optimizer"] / found["parameters"] <= 2.01
    assert max(found["parameters"] + found["optimizer"] + found["batch"], found["temporary"]) <= found["peak"]
    assert set(found["seconds"]) == {"compute", "memory", "links"}
    assert found["step_seconds"] == max(found["seconds"].values()) > 0
    # What the compiled step computes is what is needed and what it recomputes, not what one turn of its loops does.
    needed = sum(found["needed_flops"].values()) / found["num_devices"]
    assert 0.8 * needed < found["flops"] < 3 * needed
    assert found["sent"]["fsdp"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="libtpu is for Linux")
def test_slices_send_gradients_over_the_network_between_them_and_gather_weights_within(tmp_path):
    done = plan(tmp_path, "--topology", "v5e:2x2", "--slices", "2", "--config.mesh.fsdp=4", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = json.loads(done.stdout)["plans"]
    assert (found["num_devices"], found["topology"]) == (8, "2 x v5e:2x2")
    assert found["mesh"] == {"data": 2, "fsdp": 4, "context": 1, "tensor": 1}
    # A gradient is summed over two slices, so a chip sends its share of them about once, in float32.
    trained = found["optimizer"] / 2
    assert 0.9 * trained < found["sent"]["slices"] < 2.5 * trained
    assert found["seconds"]["network"] == found["sent"]["slices"] / 3.125e9
    assert found["sent"]["fsdp"] > found["sent"]["slices"]


@pytest.mark.skipif(sys.platform != "linux", reason="libtpu is for Linux")
def test_a_pass_of_the_streaming_engine_copies_no_cache(tmp_path):
    # Heads as wide as a register, as those of all published sizes are.
    text = "{'hidden_size': 512, 'mrope_section': (16, 24, 24)}"
    overrides = f"--config.model.overrides={{'text': {text}, 'vision': {{'out_hidden_size': 512}}}}"
    sizes = ["--rows", "2", "--pass-tokens", "17", "--slots", "65536", overrides]
    done = plan(tmp_path, "--topology", "v5e:2x2", "--streaming", *sizes, "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["temporary"] < found["cache"] / 20
    assert found["peak"] < 1.1 * (found["weights"] + found["cache"])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--topology", "nonsense"], "is not a topology; write a TPU generation"),
        (["--topology", "v99:2x2"], "the TPU compiler cannot make the topology v99:2x2"),
        (["--topology", "v5e:2x2", "--config.mesh.fsdp=3"], "does not fit 4 devices"),
        (
            ["--topology", "v5p:4x4x4", "--config.mesh.fsdp=32", "--config.batch_size=64"],
            "cannot be laid out along the links of this slice",
        ),
        (["--topology", "local", "--slices", "2"], "2 slices of 'local' cannot be planned for"),
        (["--topology", "v5e:2x2", "--model", "8b"], "unknown model preset '8b'"),
    ],
)
def test_refusals(tmp_path, capsys, arguments, error):
    (tmp_path / "config.py").write_text(CONFIG)
    assert main(["plan", "--config", str(tmp_path / "config.py"), *arguments]) == 2
    assert error in capsys.readouterr().err.replace("\n", " ")
