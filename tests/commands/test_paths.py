"""Paths with a scheme: refused by every verb that takes a path, before anything is written."""

import re

import pytest
from swjax.local_path import refused_scheme

from swjax.commands.main import main

CONFIG = "configs/moving_shapes.py"

COMMANDS = (
    ["prepare", "moving_shapes", "--output", "gs://bucket/data"],
    ["prepare", "manifest", "--source", "s3://bucket/manifest.jsonl", "--output", "data"],
    ["data", "inspect", "s3://bucket/manifest.jsonl"],
    ["data", "inspect", "manifest.jsonl", "--output", "gs://bucket/inspected"],
    ["train", "--config", CONFIG, "--run-dir", "gs://bucket/run"],
    ["train", "--config", CONFIG, "--config.run_dir=gs://bucket/run"],
    ["train", "--config", CONFIG, "--config.run_dir", "gs://bucket/run"],
    ["train", "--config", CONFIG, "--config.data.train=a.jsonl,gs://bucket/b.jsonl"],
    ["plan", "--config", CONFIG, "--topology", "v5e:8x8", "--config.init_from=gs://bucket/weights"],
    ["sweep", "--config", "configs/sweeps/gipe_gap.py", "--output", "gs://bucket/sweep"],
    ["report", "--table", "a.csv", "--table", "gs://bucket/b.csv"],
    ["evaluate", "--checkpoint", "gs://bucket/run", "--data", "manifest.jsonl"],
    ["stream", "--checkpoint", "gs://bucket/run", "--video", "a.mp4"],
    ["serve", "--checkpoint", "hf://Qwen/Qwen2.5-VL-3B-Instruct"],
    ["export", "--checkpoint", "run", "--output", "gs://bucket/export"],
    ["import", "file:///weights/3b"],
    ["import", "Qwen/Qwen2.5-VL-3B-Instruct", "--out", "gs://bucket/weights"],
    ["layout", "--figure", "a.png", "--figure", "gs://bucket/b.png"],
    ["quickstart", "--run-dir", "gs://bucket/run"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words[:3]))
def test_every_verb_refuses_a_url_before_it_writes(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    assert "is a URL, and swjax reads and writes local files and folders alone" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("gs://bucket/run", "gs://bucket/run is a URL, .* mount the bucket"),
        ("gs:/bucket/run", "gs://bucket/run is a URL, .* mount the bucket"),  # as pathlib writes it
        ("S3://bucket/run", "s3://bucket/run is a URL, .* mount the bucket"),
        ("hf://Qwen/Qwen2.5-VL-3B-Instruct", "give the Hub id itself, Qwen/Qwen2.5-VL-3B-Instruct$"),
        ("file:///data/a.mp4", "give the path itself, /data/a.mp4$"),
        ("file://localhost/data/a.mp4", "give the path itself, /data/a.mp4$"),
        ("https://host/a.mp4", "https://host/a.mp4 is a URL, .*; download it"),
        ("rtsp://camera/1", "rtsp://camera/1 is a URL"),
    ],
)
def test_what_to_do_instead(path, said):
    assert re.search(said, refused_scheme(path))


@pytest.mark.parametrize("path", ["runs/a", "/data/b", "data/records:train", "Qwen/Q", "C:/a", "a b: /c", "", "x:y"])
def test_names_of_files_are_taken(path):
    assert refused_scheme(path) == ""


def test_arguments_that_are_urls_or_words_are_not_paths(tmp_path, capsys):
    words = ["evaluate", "--checkpoint", str(tmp_path / "none"), "--data", "none.jsonl"]
    assert main([*words, "--judge-url", "http://localhost/v1", "--judge-model", "m"]) == 2
    assert "is no folder here to write the scores to" in capsys.readouterr().err
    assert main(["layout", "--text", "gs://is a bucket", "--frames", "2"]) == 0
