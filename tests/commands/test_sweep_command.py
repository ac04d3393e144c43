"""A sweep of two small runs: killed and started again, printed as jobs, reported."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import stores

from swjax.atomic import write_json
from swjax.commands.main import main
from swjax.evaluation.sweep import evaluation_folder, read_table
from swjax.storage import as_path, list_files

SWEEP = """
from swjax.evaluation.sweep import Sweep


def get_sweep():
    return Sweep(
        config="configs/moving_shapes.py",
        output={output!r},
        data={data!r} + "/test/manifest.jsonl",
        grids=({{"variant": ("gdpe",), "seed": (0, 1)}},),
        overrides={{
            "data.train": {data!r} + "/train/manifest.jsonl",
            "data.validation": "",
            "model.overrides": {{"text": {{"num_layers": 1}}, "vision": {{"depth": 1, "full_attention_blocks": [0]}}}},
            "steps": 2,
            "batch_size": 4,
            "checkpoint_every": 1,
        }},
        schedules=("fixed", "random:0", "random:1"),
        max_tail=3,
        mode="sequential",
        rows=2,
    )
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A file of a sweep on a small data set, and the words of a process that makes it."""
    root = tmp_path_factory.mktemp("sweep")
    counts = ["--train", "8", "--validation", "1", "--test", "2", "--workers", "1"]
    assert main(["prepare", "moving_shapes", "--output", str(root / "data"), *counts]) == 0
    file = root / "sweep.py"
    file.write_text(SWEEP.format(data=str(root / "data"), output=str(root / "default")))
    return root


def command(made, name):
    words = ["sweep", "--config", str(made / "sweep.py"), "--output", str(made / name)]
    return [sys.executable, "-m", "swjax.commands.main", *words]


def environment():
    """One device, and all that was compiled is kept: the runs of these tests compile the same programs."""
    return {**os.environ, "XLA_FLAGS": "", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


@pytest.fixture(scope="module")
def whole(made):
    """The folder of the sweep, made in peace, and the seconds that it took."""
    began = time.monotonic()
    subprocess.run(command(made, "whole"), env=environment(), check=True)
    return made / "whole", time.monotonic() - began


@pytest.mark.slow
def test_a_sweep_that_was_killed_ends_with_the_same_table(made, whole):
    table = (whole[0] / "results.csv").read_bytes()
    assert len(table.splitlines()) == 1 + 2 * 3

    wait_s = random.uniform(0.1, 0.9) * whole[1]
    print(f"killed after {wait_s:.1f} s")
    with subprocess.Popen(command(made, "killed"), env=environment(), start_new_session=True) as process:
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    subprocess.run([*command(made, "killed"), "--parallel", "2"], env=environment(), check=True)
    assert (made / "killed" / "results.csv").read_bytes() == table

    for folder in ("evaluation", "evaluation_random_0", "evaluation_random_1"):
        (scores, *_) = (made / "killed").glob(f"runs/*/{folder}/scores.json")
        wall = json.loads(scores.read_text())["model"]["wall"]
        assert (wall["mode"], wall["rows"]) == ("sequential", 2)

    finished = {path: path.stat().st_mtime_ns for path in (made / "killed").glob("runs/*/result.json")}
    assert len(finished) == 2
    assert main(command(made, "killed")[3:]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "a finished run is not made again"


def test_a_finished_sweep_is_reported(made, whole, capsys):
    folder = whole[0]
    assert main(["report", "--sweep", str(folder), "--metrics", "event_accuracy,cider,word_s"]) == 0
    assert "| schedule | runs | schedules | event accuracy (%) | CIDEr | mean token (s) |" in capsys.readouterr().out
    written = {path.name for path in (folder / "report").iterdir()}
    assert written == {"table.md", "table.tex"}, "with one variant and one gap there is nothing to draw"
    by_table = ["report", "--table", str(folder / "results.csv"), "--output", str(made / "tables"), "--no-figures"]
    assert main([*by_table, "--metrics", "event_accuracy,cider,word_s"]) == 0
    assert (made / "tables" / "table.md").read_text() == (folder / "report" / "table.md").read_text()


def test_jobs_are_the_unfinished_runs(made, whole, capsys):
    words = ["sweep", "--config", str(made / "sweep.py"), "--output", str(made / "new"), "--config.steps=1"]
    assert main([*words, "--print-jobs"]) == 0
    jobs = capsys.readouterr().out.splitlines()
    assert jobs == [
        f"swjax sweep --config {made / 'sweep.py'} --only variant-gdpe_seed-{seed} --output {made / 'new'} "
        "--config.steps=1"
        for seed in (0, 1)
    ]
    assert not (made / "new").exists()
    assert main([*words[:4], str(whole[0]), "--print-jobs"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "nowhere.py"], "there is no sweep nowhere.py"),
        (["--config", "configs/moving_shapes.py"], "AttributeError"),
        (["--config", "{sweep}", "--config.optimizer.lr=1"], "unknown key config.optimizer.lr"),
        (
            ["--config", "{sweep}", "--only", "seed-7"],
            "the sweep has no run 'seed-7'; its runs are variant-",
        ),
        (["--config", "{sweep}", "--output", "{whole}", "--config.steps=9"], "defined otherwise (config.steps)"),
    ],
)
def test_what_cannot_be_swept_is_named(made, whole, capsys, words, message):
    places = {"sweep": made / "sweep.py", "whole": whole[0]}
    assert main(["sweep", *(word.format(**places) for word in words)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_sweep_may_import_its_neighbours(made, tmp_path, capsys):
    for name, seeds in (("one", (4,)), ("two", (5, 6))):
        (tmp_path / name).mkdir()
        text = (made / "sweep.py").read_text().replace('"seed": (0, 1)', '"seed": SEEDS')
        (tmp_path / name / "sweep.py").write_text("from neighbour import SEEDS\n" + text)
        (tmp_path / name / "neighbour.py").write_text(f"SEEDS = {seeds}\n")
        words = ["sweep", "--config", str(tmp_path / name / "sweep.py"), "--output", str(tmp_path / "new")]
        assert main([*words, "--print-jobs"]) == 0
        jobs = capsys.readouterr().out.splitlines()
        assert all(f"--only variant-gdpe_seed-{seed} " in job for seed, job in zip(seeds, jobs, strict=True))


def test_a_run_that_fails_is_told_and_the_others_are_made(made, capsys, monkeypatch):
    tried = []

    def make(sweep, run, folder, definition, extra):
        tried.append(run.name)
        return run.values["seed"] == 1

    monkeypatch.setattr("swjax.commands.sweep._make", make)
    assert main(["sweep", "--config", str(made / "sweep.py"), "--output", str(made / "failing")]) == 1
    assert tried == ["variant-gdpe_seed-0", "variant-gdpe_seed-1"]
    assert "1 runs failed: variant-gdpe_seed-0" in capsys.readouterr().out
    assert json.loads((made / "failing" / "sweep.json").read_text())["runs"] == tried


@pytest.mark.parametrize("status", [75, 130])
def test_a_sweep_stops_when_its_training_was_asked_to(made, monkeypatch, status):
    tried = []
    monkeypatch.setattr("swjax.commands.train.run", lambda args, extra: tried.append(args.run_dir) or status)
    assert main(["sweep", "--config", str(made / "sweep.py"), "--output", str(made / "stopped")]) == status
    assert len(tried) == 1
    assert not list((made / "stopped").glob("runs/*/result.json"))


@pytest.mark.parametrize("file", sorted(Path("configs/sweeps").glob("[!_]*.py")), ids=lambda file: file.stem)
def test_the_sweeps_of_the_repository_can_be_made(file, tmp_path, capsys):
    assert main(["sweep", "--config", str(file), "--output", str(tmp_path / "new"), "--print-jobs"]) == 0
    jobs = capsys.readouterr().out.splitlines()
    assert jobs
    assert len(jobs) % 3 == 0  # seeds
    assert len(set(jobs)) == len(jobs)


def bucket_sweep(made, output):
    """A file of a sweep over two gaps, of data and into a folder in a bucket."""
    text = SWEEP.format(data="gs://bucket/shapes", output=output).replace("configs/moving_shapes.py", "moving_shapes")
    text = text.replace('"variant": ("gdpe",), "seed": (0, 1)', '"gap": (0, 7)').replace('"random:0", "random:1"', "")
    text = text.replace('"steps": 2', '"variant": "gipe", "steps": 1').replace('"batch_size": 4', '"batch_size": 8')
    (made / "gaps.py").write_text(text)
    return str(made / "gaps.py")


def check_bucket_sweep(file, output, capsys):
    """Makes one run, then the rest, and reports."""
    assert main(["sweep", "--config", file, "--only", "gap-0"]) == 0
    capsys.readouterr()
    assert main(["sweep", "--config", file, "--print-jobs"]) == 0
    assert "--only gap-7" in capsys.readouterr().out
    assert main(["sweep", "--config", file]) == 0
    assert "2 runs, 1 of them finished before" in capsys.readouterr().out
    assert main(["report", "--sweep", output, "--metrics", "word_s"]) == 0
    assert [(row["gap"], row["videos"]) for row in read_table(as_path(output) / "results.csv")] == [(0, 1), (7, 1)]
    assert "| gap | runs |" in (as_path(output) / "report" / "table.md").read_text()
    assert (as_path(output) / "report" / "gap.png").read_bytes().startswith(b"\x89PNG")


def test_the_documented_sweep_and_its_tables_are_in_a_bucket(gcs, tmp_path, monkeypatch, capsys):
    def evaluate(args, extra):
        row = {"videos": 1, "event_accuracy": 0.5, "intervals": {"event_accuracy": [0.4, 0.6]}}
        for seed in args.schedule_seed if args.schedule == "random" else [None]:
            folder = evaluation_folder(as_path(args.checkpoint), args.schedule, seed)
            write_json(folder / "scores.json", {"model": row})
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("swjax.commands.train.run", lambda args, extra: 0)
    monkeypatch.setattr("swjax.commands.evaluate.run", evaluate)
    sweep, report = stores.documented(1)[3:]
    with gcs.failing(every=40):
        assert main([*sweep, "--print-jobs"]) == 0
        first, *others = capsys.readouterr().out.splitlines()
        assert main(shlex.split(first)[1:]) == 0
        assert main(sweep) == 0
        assert f"{1 + len(others)} runs, 1 of them finished before" in capsys.readouterr().out
        assert main(report) == 0
    made = {name for name in list_files(as_path(sweep[-1])) if not name.startswith("runs/")}
    assert {"sweep.json", "results.csv", "report/table.md", "report/gap.png"} <= made
    rows = read_table(as_path(sweep[-1]) / "results.csv")
    assert {row["run"] for row in rows} == set(json.loads((as_path(sweep[-1]) / "sweep.json").read_text())["runs"])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_data_runs_table_and_report_in_a_bucket(made, gcs, tmp_path, monkeypatch, capsys, request):
    if "slow" not in request.config.getoption("markexpr"):
        pytest.skip("its parts are tested one by one; -m slow was not given")
    monkeypatch.chdir(tmp_path)
    with gcs.failing(every=40):
        counts = ["--train", "8", "--validation", "0", "--test", "1", "--workers", "1"]
        assert main(["prepare", "moving_shapes", "--output", "gs://bucket/shapes", *counts]) == 0
        check_bucket_sweep(bucket_sweep(made, "gs://bucket/sweep"), "gs://bucket/sweep", capsys)
    assert not list(tmp_path.iterdir())


def test_logs_of_runs_apart_grow_in_a_bucket(made, gcs, monkeypatch):
    def fail(command, *, stdout, **_):
        stdout.write(b"no luck\n")
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr("swjax.commands.sweep.subprocess.run", fail)
    for tries in (1, 2):
        words = ["--output", "gs://bucket/apart", "--parallel", "2"]
        assert main(["sweep", "--config", str(made / "sweep.py"), *words]) == 1
        log = as_path("gs://bucket/apart/runs/variant-gdpe_seed-0/log.txt")
        assert log.read_text() == "no luck\n" * tries
