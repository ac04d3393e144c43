"""`swjax data inspect` and `swjax prepare` with a source, as a user calls them."""

import json
import re

import pytest
from PIL import Image

from swjax.commands.main import main
from swjax.data.tokenizer import SHIPPED_TOKENIZER


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    arguments = ["--train", "4", "--validation", "2", "--test", "0", "--workers", "1"]
    assert main(["prepare", "moving_shapes", "--output", str(folder / "videos"), *arguments]) == 0
    return folder


def test_records_of_moving_shapes(shapes, capsys):
    source = ["--source", str(shapes / "videos"), "--output", str(shapes / "out"), "--workers", "0"]
    assert main(["prepare", "moving_shapes", *source, "--max-pixels", "12544"]) == 0
    said = capsys.readouterr().out
    assert "--config.data.train=" in said
    assert "validation" in said
    pixels = ["--max-pixels", "12544", "--drop", "uniform:share=0.5"]
    assert (
        main(["data", "inspect", f"{shapes / 'out' / 'moving_shapes'}:validation", "--max-tokens", "512", *pixels]) == 0
    )
    said = capsys.readouterr().out
    assert "2 examples, the first 2 looked at, 2 usable" in said
    dropped, whole = re.search(
        r"dropped by uniform:share=0.5: (\d+) of (\d+) tokens of frames \(50.0%\)", said
    ).groups()
    assert 2 * int(dropped) == int(whole) > 0
    assert "--config.data.drop=uniform:share=0.5 --config.data.max_tokens=" in said
    assert "tokens are counted with the small tokenizer of Moving Shapes; give --tokenizer" in said
    assert main(["data", "inspect", f"{shapes / 'out' / 'moving_shapes'}:nosuch"]) == 2
    assert "has no split 'nosuch'; it has train, validation" in " ".join(capsys.readouterr().err.split())
    train = ["train", "--config", "configs/moving_shapes.py", "--run-dir", str(shapes / "run")]
    assert main([*train, f"--config.data.train={shapes / 'out' / 'moving_shapes'}:nosuch"]) == 2
    assert "has no split 'nosuch'; it has train, validation" in " ".join(capsys.readouterr().err.split())


def test_a_damaged_record_is_skipped(shapes, capsys):
    arguments = ["--source", str(shapes / "videos"), "--output", str(shapes / "damaged"), "--workers", "0"]
    assert main(["prepare", "moving_shapes", *arguments, "--max-pixels", "12544"]) == 0
    (shard,) = (shapes / "damaged").rglob("*train.array_record*")
    whole = shard.read_bytes()
    middle = whole.rindex(b"JFIF") + 100
    shard.write_bytes(whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 64]) + whole[middle + 64 :])
    capsys.readouterr()
    limits = ["--max-tokens", "512", "--max-pixels", "12544", "--tokenizer", str(SHIPPED_TOKENIZER)]
    assert main(["data", "inspect", f"{shapes / 'damaged'}:train", *limits]) == 0
    said = capsys.readouterr().out
    assert "4 examples, the first 4 looked at, 3 usable" in said
    assert re.search(r"skipped: record \d: record \d of .*:train is damaged", said)
    assert "small tokenizer" not in said


def test_inspect(shapes, tmp_path, capsys):
    manifest = shapes / "videos" / "train" / "manifest.jsonl"
    damaged = manifest.with_name("damaged.jsonl")
    damaged.write_text(manifest.read_text() + "{not json\n")
    assert main(["data", "inspect", str(damaged), "--output", str(tmp_path / "out"), "--sheets", "1"]) == 0
    said = capsys.readouterr().out
    assert "4 usable" in said
    assert "damaged.jsonl:5: not JSON" in said
    assert "% packed" in said
    written = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert len(written["sizes"]) == 4
    assert 0 < written["packed_share"] < written["padded_share"] < 1
    for name in ("histograms.png", "example_0.png"):
        assert min(Image.open(tmp_path / "out" / name).size) > 100


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["prepare", "pe_video"], "give the folder of the original pe_video with --source"),
        (["prepare", "pe_video", "--source", "nowhere"], "there is no nowhere"),
        (["prepare", "manifest", "--source", ".", "--fps", "0"], "fps must be above 0"),
        (
            ["prepare", "manifest", "--source", ".", "--tokenizer", "nowhere", "--min-rate", "3"],
            "nowhere is not a folder",
        ),
        (["data", "inspect", "nowhere.jsonl"], "there is no manifest nowhere.jsonl"),
        (["data", "inspect", "tests:train"], "there is no data set in tests"),
    ],
)
def test_refusals(arguments, error, capsys):
    assert main(arguments) == 2
    assert error in capsys.readouterr().err.replace("\n", " ")
