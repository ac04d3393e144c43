"""What writing leaves behind when it is cut off, and what it is given to write."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from swjax.hub import CheckpointError, load_hf, open_hf, save_hf, writer
from swjax.models.parameters import split_parameters

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_qwen2_5_vl"
ENDLESS = """
import sys
from swjax.hub import writer, load_hf, save_hf
save = writer.save_file
def slowly(arrays, file, **others):
    save(arrays, file, **others)
    print(file, flush=True)
    import time; time.sleep(0.2)
writer.save_file = slowly
model = load_hf(sys.argv[1])
while True:
    save_hf(model, sys.argv[2], max_shard_size="200KB")
"""


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}


def test_arrays_stored_arrays_and_models_are_written_alike(tmp_path):
    model, (config, opened) = load_hf(GOLDEN), open_hf(GOLDEN)
    arrays = {path: np.asarray(leaf) for path, leaf in split_parameters(model)[1].items()}
    save_hf(model, tmp_path / "model", dtype=jnp.bfloat16)
    save_hf(opened, tmp_path / "stored", config=config, dtype=jnp.bfloat16)
    save_hf(arrays, tmp_path / "arrays", config=config, dtype=jnp.bfloat16)
    for name in ("model.safetensors", "config.json"):
        written = (tmp_path / "model" / name).read_bytes()
        assert (tmp_path / "stored" / name).read_bytes() == written
        assert (tmp_path / "arrays" / name).read_bytes() == written
    assert json.loads((tmp_path / "model" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    original = tensors_of(GOLDEN)
    for name, array in tensors_of(tmp_path / "model").items():
        np.testing.assert_array_equal(array, original[name].astype(jnp.bfloat16), err_msg=name)


def test_parameters_alone_need_a_configuration(tmp_path):
    with pytest.raises(TypeError, match="needs the configuration"):
        save_hf(open_hf(GOLDEN)[1], tmp_path)


def test_killed_while_writing_it_leaves_nothing_that_loads(tmp_path):
    writing = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(GOLDEN), str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    for _ in range(3):
        writing.stdout.readline()
    writing.send_signal(signal.SIGKILL)
    writing.wait()
    assert list((tmp_path / "out").glob("*.safetensors*"))
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_hf(tmp_path / "out")
    save_hf(load_hf(GOLDEN), tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}


def test_an_earlier_checkpoint_stays_whole_until_the_next_is_written(tmp_path, monkeypatch):
    save_hf(load_hf(GOLDEN), tmp_path, max_shard_size="200KB")
    before = tensors_of(tmp_path)

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    model = load_hf(GOLDEN, dtype=jnp.bfloat16)
    monkeypatch.setattr(writer, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        save_hf(model, tmp_path)
    assert load_hf(tmp_path).decoder.norm_d.dtype == jnp.float32
    for name, array in tensors_of(tmp_path).items():
        np.testing.assert_array_equal(array, before[name])


def test_cut_off_between_renames_it_does_not_load(tmp_path, monkeypatch):
    save_hf(load_hf(GOLDEN), tmp_path, max_shard_size="200KB")
    real, calls = os.replace, []

    def stop_at_third(one, other):
        calls.append(other)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(one, other)

    model = load_hf(GOLDEN)
    monkeypatch.setattr(writer.os, "replace", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        save_hf(model, tmp_path, max_shard_size="200KB")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_hf(tmp_path)


def test_a_checkpoint_can_be_rewritten_where_it_lies(tmp_path):
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    config, opened = open_hf(tmp_path)
    save_hf(opened, tmp_path, config=config, max_shard_size="200KB")
    one, other = tensors_of(GOLDEN), tensors_of(tmp_path)
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.tobytes() == other[name].tobytes(), name
