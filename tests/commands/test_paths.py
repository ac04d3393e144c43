"""Paths with a scheme: those of stores are opened where a verb takes them, others are refused before it writes."""

import argparse
import importlib.util
import os
import re
from pathlib import Path

import fsspec
import pytest

from swjax.commands.main import VERBS, main
from swjax.commands.sweep import load_sweep
from swjax.storage import StorageError, as_path, copy_file, paths, refused_scheme
from swjax.training.config_file import load_config

CONFIG = "configs/moving_shapes.py"

REFUSED = (
    ["prepare", "moving_shapes", "--output", "ftp://host/data"],
    ["prepare", "manifest", "--source", "https://host/manifest.jsonl", "--output", "data"],
    ["data", "inspect", "https://host/manifest.jsonl"],
    ["train", "--config", CONFIG, "--run-dir", "gcs://bucket/run"],
    ["train", "--config", CONFIG, "--config.run_dir=gcs://bucket/run"],
    ["train", "--config", CONFIG, "--config.run_dir", "gcs://bucket/run"],
    ["train", "--config", CONFIG, "--config.data.train=a.jsonl,rtsp://bucket/b.jsonl"],
    ["plan", "--config", CONFIG, "--topology", "v5e:8x8", "--config.init_from=ftp://bucket/weights"],
    ["sweep", "--config", "configs/sweeps/gipe_gap.py", "--output", "gcs://bucket/sweep"],
    ["evaluate", "--checkpoint", "s3a://bucket/run", "--data", "manifest.jsonl"],
    ["serve", "--checkpoint", "hf://Qwen/Qwen2.5-VL-3B-Instruct"],
    ["export", "--checkpoint", "run", "--output", "gcs://bucket/export"],
    ["import", "file:///weights/3b"],
    ["import", "Qwen/Qwen2.5-VL-3B-Instruct", "--out", "gcs://bucket/weights"],
    ["quickstart", "--run-dir", "file:///run"],
)

ON_DISK_ALONE = (
    ["quickstart", "--run-dir", "gs://bucket/run"],
    ["quickstart", "--data", "gs:/bucket/data"],
)


SWEEP = """
from swjax.evaluation.sweep import Sweep

def get_sweep():
    return Sweep(config="moving_shapes", grids=({"seed": (0,)},), data="a.jsonl", output="b")
"""

DISK_ALONE = {f"quickstart {name}" for name in ("data", "run_dir", "export")}
"""Arguments that take no bucket, each by its verb: `main` refuses one for every argument of the type Path."""


def test_a_new_argument_takes_a_bucket_or_stands_in_the_list():
    found = set()
    for verb in VERBS:
        parser = argparse.ArgumentParser()
        verb.add_arguments(parser)
        found |= {f"{verb.NAME} {action.dest}" for action in parser._actions if action.type is Path}
    assert found == DISK_ALONE


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", REFUSED, ids=lambda words: " ".join(words[:3]))
def test_every_verb_refuses_other_urls_before_it_writes(elsewhere, capsys, command):
    assert main(command) == 2
    assert "is a URL that swjax does not open" in capsys.readouterr().err


@pytest.mark.parametrize("command", ON_DISK_ALONE, ids=lambda words: " ".join(words[:3]))
def test_what_is_on_disk_alone_refuses_buckets(elsewhere, gcs, capsys, command):
    assert main(command) == 2
    assert "is in a bucket, and this argument takes files and folders on disk alone" in capsys.readouterr().err


def test_configurations_are_read_from_a_bucket(elsewhere, gcs, capsys):
    folder = as_path("gs://bucket/configs")
    assert main(["train", "--config", f"{folder}/none.py"]) == 2
    assert f"there is no configuration file {folder}/none.py" in capsys.readouterr().err
    copy_file(Path(__file__).parents[2] / "configs" / "moving_shapes.py", folder / "moving_shapes.py")
    (folder / "sweep.py").write_text(SWEEP)
    assert load_config(folder / "moving_shapes.py", ["--config.gap=7"]) == load_config(
        "moving_shapes", ["--config.gap=7"]
    )
    assert load_sweep(folder / "sweep.py").grids == ({"seed": (0,)},)


@pytest.mark.parametrize(
    ("scheme", "package", "extra"), [("gs", "gcsfs", "gcs"), ("s3", "s3fs", "s3"), ("az", "adlfs", "azure")]
)
def test_a_store_whose_package_is_not_there_says_what_to_install(
    elsewhere, monkeypatch, capsys, scheme, package, extra
):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    assert main(["train", "--config", CONFIG, "--run-dir", f"{scheme}://bucket/run"]) == 2
    said = f"{scheme}:// needs {package}, which is not installed: pip install 'swjax[{extra}]'"
    assert said in capsys.readouterr().err


def test_azure_without_an_account_says_what_to_set(elsewhere, monkeypatch, capsys):
    fsspec.get_filesystem_class("az").clear_instance_cache()
    paths._check_account.cache_clear()
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    assert main(["import", "az://bucket/run"]) == 2
    said = capsys.readouterr().err
    assert "az:// cannot be used (unable to connect to account" in said
    assert "for credentials, AZURE_STORAGE_ACCOUNT_NAME" in said


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("gs://", "gs:// names no bucket; write gs://BUCKET/FOLDER"),
        ("gcs:/bucket/run", "gcs://bucket/run is a URL .*; write gs://BUCKET/FOLDER"),  # as pathlib writes it
        ("abfs://container/run", "write az://BUCKET/FOLDER"),
        ("hf://Qwen/Qwen2.5-VL-3B-Instruct", "give the Hub id itself, Qwen/Qwen2.5-VL-3B-Instruct$"),
        ("file:///data/a.mp4", "give the path itself, /data/a.mp4$"),
        ("file://localhost/data/a.mp4", "give the path itself, /data/a.mp4$"),
        ("https://host/a.mp4", "https://host/a.mp4 is a URL .*; download it"),
        ("rtsp://camera/1", "rtsp://camera/1 is a URL"),
    ],
)
def test_what_to_do_instead(path, said):
    assert re.search(said, refused_scheme(path))
    with pytest.raises(StorageError, match=said):
        as_path(path)


@pytest.mark.parametrize("path", ["runs/a", "/data/b", "data/records:train", "Qwen/Q", "C:/a", "a b: /c", "", "x:y"])
def test_names_of_files_are_taken(path):
    assert refused_scheme(path) == ""


def test_urls_of_stores_are_understood_however_they_were_written(gcs):
    for name in ("gs://bucket/a/b", "gs:/bucket/a/b", "GS://bucket/a/b", as_path("gs://bucket/a/b")):
        assert str(as_path(name)) == "gs://bucket/a/b"


def test_arguments_that_are_urls_or_words_are_not_paths(tmp_path, capsys):
    words = ["evaluate", "--checkpoint", str(tmp_path / "none"), "--data", "none.jsonl"]
    assert main([*words, "--judge-url", "http://localhost/v1", "--judge-model", "m"]) == 2
    assert "is no folder here to write the scores to" in capsys.readouterr().err
    assert main(["layout", "--text", "gs://is a bucket", "--frames", "2"]) == 0
