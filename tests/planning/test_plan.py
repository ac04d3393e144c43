"""`swjax plan` of a tiny model for a slice that is not there."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from swjax.commands.main import main
from swjax.models.family import preset_config
from swjax.planning.plan import candidates
from swjax.training.config_file import load_config

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


def test_candidates_train_the_step_of_the_configuration_in_other_shapes(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    config = load_config(tmp_path / "config.py", [])
    found = list(candidates(config, preset_config("tiny"), 4))
    for one in found:
        assert one.batch_size * one.accumulation == 16
        assert one.mesh.data * one.mesh.fsdp * one.mesh.context * one.mesh.tensor == 4
        assert one.batch_size % (one.mesh.data * one.mesh.fsdp) == 0
        assert (
            dataclasses.replace(one, mesh=config.mesh, batch_size=8, accumulation=2, remat=config.remat) == config
        )  # nothing else is changed
    shapes = [(one.mesh.fsdp, one.batch_size, one.accumulation, one.remat) for one in found if one.mesh.data == 1]
    assert shapes[:4] == [(4, 8, 2, "minimal"), (4, 8, 2, "attention"), (4, 8, 2, "full"), (4, 16, 1, "minimal")]
    assert shapes[6] == (4, 4, 4, "minimal")
    assert len({repr(one) for one in found}) == len(found)
    # A step of three rows divides no four chips but those over which a row is cut.
    three = dataclasses.replace(config, batch_size=3, accumulation=1)
    assert {one.mesh.data * one.mesh.fsdp for one in candidates(three, preset_config("tiny"), 4)} == {1}


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


@pytest.mark.skipif(sys.platform != "linux", reason="libtpu is for Linux")
def test_streaming_on_a_mesh_whose_chips_have_copies_of_key_heads(tmp_path):
    text = "{'hidden_size': 1024, 'num_heads': 8, 'num_kv_heads': 2, 'mrope_section': (16, 24, 24)}"
    overrides = f"--config.model.overrides={{'text': {text}, 'vision': {{'out_hidden_size': 1024}}}}"
    sizes = ["--rows", "2", "--pass-tokens", "17", "--slots", "4096", overrides]
    done = plan(tmp_path, "--topology", "v5e:2x2", "--streaming", "--mesh", "tensor=4", *sizes, "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["mesh"] == {"tensor": 4}
    ((_, kernel),) = found["advancing"]["kernels"].items()
    # A chip has two of the eight heads, which go with 17 tokens through tiles of 2,048 keys of one head.
    assert kernel["pairs_a_bundle"] * kernel["bundles"] == pytest.approx(2 * 17 * 2048)
    assert found["advancing"]["estimated_seconds"] > kernel["seconds"] > 0
    assert found["advancing"]["sent_seconds"] > 0


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
        (
            ["--topology", "v5p:4x4x4", "--search", "--config.batch_size=3"],
            "no mesh of 64 chips divides a step of 3 x 2 rows; set --config.batch_size or --config.accumulation",
        ),
        (["--topology", "v5e:2x2", "--model", "8b"], "unknown model preset '8b'"),
    ],
)
def test_refusals(tmp_path, capsys, arguments, error):
    (tmp_path / "config.py").write_text(CONFIG)
    assert main(["plan", "--config", str(tmp_path / "config.py"), *arguments]) == 2
    assert error in capsys.readouterr().err.replace("\n", " ")
