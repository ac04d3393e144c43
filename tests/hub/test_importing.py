"""Fetching, copying and checking checkpoints, without a network."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import load_file, save_file

from swjax.commands.main import main
from swjax.hub import CheckpointError, reader
from swjax.hub.importing import import_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_qwen2_5_vl"
TOKENIZER = Path(__file__).parents[2] / "swjax" / "data" / "moving_shapes" / "tokenizer"


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / file, folder)
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "training_log.bin").write_bytes(b"of no use")
    return folder


def test_a_folder_is_copied_and_described(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["import", str(source), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "in float32, all there" in shown
    assert "not there" not in shown
    assert {file.name for file in out.iterdir()} == {file.name for file in source.iterdir()} - {"training_log.bin"}
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    checked = import_checkpoint(out, None)
    assert checked.parameters == sum(array.size for array in load_file(source / "model.safetensors").values())


def test_an_import_that_was_cut_off_does_not_load_and_goes_on(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    real = shutil.copyfile

    def stop_at_weights(one, other):
        if one.name == "model.safetensors":
            raise KeyboardInterrupt
        return real(one, other)

    monkeypatch.setattr(shutil, "copyfile", stop_at_weights)
    with pytest.raises(KeyboardInterrupt):
        import_checkpoint(source, out)
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        import_checkpoint(out, None)
    monkeypatch.undo()
    assert import_checkpoint(source, out).lacking == ()


def test_what_is_not_there_is_named(source, tmp_path, capsys):
    (source / "tokenizer.json").unlink()
    (source / "preprocessor_config.json").unlink()
    assert main(["import", str(source)]) == 0
    assert "not there: preprocessor_config.json, tokenizer.json; name a tokenizer" in capsys.readouterr().out


def test_weights_that_are_no_floats_are_refused(source):
    arrays = load_file(source / "model.safetensors")
    save_file(arrays | {"model.norm.weight": np.ones(64, np.int8)}, source / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds weights in int8"):
        import_checkpoint(source, None)


def test_other_folders_are_not_written_into(source, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "video.mp4").touch()
    with pytest.raises(CheckpointError, match=r"holds video\.mp4, which is of no checkpoint"):
        import_checkpoint(source, tmp_path / "data")


def test_a_hub_id_is_fetched_to_the_folder(source, tmp_path, monkeypatch):
    def fetch(hub_id, allow_patterns, local_dir):
        assert hub_id == "Qwen/Qwen2.5-VL-7B-Instruct"
        assert "*.safetensors" in allow_patterns
        return shutil.copytree(source, local_dir)

    monkeypatch.setattr(reader, "snapshot_download", fetch)
    checked = import_checkpoint("Qwen/Qwen2.5-VL-7B-Instruct", tmp_path / "out")
    assert checked.folder == tmp_path / "out"
    with pytest.raises(CheckpointError, match="say where to with --out"):
        import_checkpoint("Qwen/Qwen2.5-VL-7B-Instruct", None)


def test_without_a_network_it_says_what_to_do(tmp_path, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(reader, "snapshot_download", fail)
    assert main(["import", "Qwen/Qwen2.5-VL-7B-Instruct", "--out", str(tmp_path / "out")]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "hf download Qwen/Qwen2.5-VL-7B-Instruct --local-dir FOLDER" in shown
    assert "no network" in shown
