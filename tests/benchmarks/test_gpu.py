"""The GPU benchmark in miniature, on the CPU, so that no minute with a GPU is spent on a typo."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu")
    parts = "jax_attention", "train_step 7b:auto:minimal", "streaming 3b"
    command = [sys.executable, SCRIPT, "--dry-run", "--out", out, "--commit", "abc1234", "--parts", *parts]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    return out, done.stdout, records


def test_nothing_fails(run):
    assert not [record for record in run[2] if "failed" in record]


def test_every_part_has_its_rows(run):
    found = {(record["part"], record.get("case") or record["method"]) for record in run[2]}
    assert {("attention", "cudnn_causal"), ("attention", "chunked"), ("step", "swjax auto, remat=minimal")} <= found
    assert {("streaming", case) for case in ("modes", "gain", "streams", "long")} <= found


def test_the_report_shows_them(run):
    out, printed, records = run
    assert "commit abc1234" in printed
    assert (out / "tables.md").read_text() in printed
    assert printed.count("| cudnn_causal |") == sum(record["method"] == "cudnn_causal" for record in records)
    assert (out / "gpu.png").stat().st_size > 10_000


def test_a_part_that_takes_too_long_is_ended_and_noted(tmp_path):
    command = [sys.executable, SCRIPT, "--dry-run", "--out", tmp_path, "--limit-s", "0.5", "--parts", "kernels"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (record,) = (json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines())
    assert record["part"] == "kernels"
    assert record["failed"].startswith("ended after")
    assert record["failed"] in done.stdout
