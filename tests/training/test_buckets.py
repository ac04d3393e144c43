"""Runs whose folder is in a bucket: stopped, resumed, and the same bits as on disk."""

import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import launched
import numpy as np
import pytest
import stores
from ml_collections import ConfigDict
from rich.console import Console

import swjax.training.loop
from swjax.commands.main import main
from swjax.hub import open_hf
from swjax.runs.folder import list_steps, open_run_model
from swjax.storage import as_path, copy_file, list_files, remove_folder, sync_logs
from swjax.training.config import flatten
from swjax.training.origin import open_origin
from swjax.training.run import train

SILENT = Console(quiet=True)


def assert_same_arrays(left, right) -> None:
    assert left.keys() == right.keys()
    for path, array in left.items():
        found = (stored.read_rows(0, stored.shape[0]) for stored in (array, right[path]))
        np.testing.assert_array_equal(*(np.ascontiguousarray(rows).view(np.uint32) for rows in found), err_msg=path)


def assert_same_run(left, right, step: int) -> None:
    assert launched.metric_lines(left) == launched.metric_lines(right)
    assert_same_arrays(*(open_run_model(folder, step) for folder in (left, right)))
    # What a start makes has other names each time.
    made = [{name.partition("/")[0] for name in list_files(folder)} for folder in (left, right)]
    assert made[0] == made[1]


def stop_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Lets runs end where they would save a step."""
    save = swjax.training.loop.save_checkpoint

    def save_before(checkpoints, at, *args, **kwargs):
        if at == step:
            raise RuntimeError("the machine is gone")
        save(checkpoints, at, *args, **kwargs)

    patch.setattr(swjax.training.loop, "save_checkpoint", save_before)


def check_what_follows(commands: Iterator[list[str]], on_disk: Path) -> None:
    """Evaluates, exports and imports in the bucket as documented, and compares with the same on disk."""
    url = "gs://bucket/runs/shapes"
    evaluate, export, import_ = commands
    assert main([*evaluate, "--limit", "1"]) == 0
    assert main([*(str(on_disk) if word == url else word for word in evaluate), "--limit", "1"]) == 0
    sync_logs()
    lines = [(as_path(run) / "evaluation" / "predictions.jsonl").read_text() for run in (url, on_disk)]
    left, right = map(json.loads, lines)
    assert [left[name] for name in ("key", "text")] == [right[name] for name in ("key", "text")]
    exported, imported, local = (as_path(name) for name in (export[-1], import_[-1], on_disk.parent / "exported"))
    for words in (export, ["export", "--checkpoint", str(on_disk), "--output", str(local)]):
        assert main([*words, "--max-shard-size", "100KB"]) == 0
    assert main(import_) == 0
    for folder in (exported, imported):
        names = [name for name in list_files(folder) if name.endswith((".safetensors", ".json", ".jinja"))]
        assert len(names) > 6
        for name in names:
            assert (folder / name).read_bytes() == (local / name).read_bytes(), name
    assert_same_arrays(open_hf(imported)[1], open_hf(local)[1])


def test_a_run_in_a_bucket_stops_and_resumes_and_ends_as_on_disk(
    gcs, moving_shapes, make_config, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_config(tmp_path / "on_disk")
    config.steps, config.data.validation = 4, ""
    config.model.overrides.vision.update({"depth": 1, "full_attention_blocks": (0,)})
    train(config, console=SILENT)
    for name in list_files(moving_shapes):
        copy_file(moving_shapes / name, as_path("gs://bucket/clips") / name)
    (tmp_path / "config.py").write_text(launched.CONFIG_FILE.format(content=json.dumps(flatten(config))))
    commands = iter(stores.documented(0))
    command = ["config.py" if word == "configs/moving_shapes.py" else word for word in next(commands)]
    url = "gs://bucket/runs/shapes"
    with gcs.failing(every=40), monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(RuntimeError, match="the machine is gone"):
            main(command)
        patch.undo()
        assert list_steps(url) == [2]
        assert main(command) == 0
        assert_same_run(as_path(url), tmp_path / "on_disk", 4)
        check_what_follows(commands, tmp_path / "on_disk")
        assert_same_arrays(open_origin(url, "2").parameters, open_run_model(tmp_path / "on_disk", 2))
        assert gcs.faults >= 10
    assert {file.name for file in tmp_path.iterdir()} == {"on_disk", "exported", "config.py"}, (
        "nothing else is left on disk"
    )


@pytest.fixture(scope="module")
def run_on_disk(make_config, tmp_path_factory) -> ConfigDict:
    """The configuration of a run of four steps, which is on disk."""
    config = make_config(tmp_path_factory.mktemp("staged") / "on_disk")
    config.steps, config.data.validation, config.checkpoint_every, config.keep = 4, "", 1, 2
    config.model.overrides.vision.update({"depth": 1, "full_attention_blocks": (0,)})
    train(config, console=SILENT)
    return config


@pytest.mark.slow
@pytest.mark.parametrize(("name", "root"), [("s3", "s3://bucket"), ("azure", "az://bucket")])
def test_a_run_in_a_store_that_orbax_does_not_write_to(name, root, request, run_on_disk, tmp_path, monkeypatch) -> None:
    proxy, on_disk = request.getfixturevalue(name), Path(run_on_disk.run_dir)
    config = run_on_disk.copy_and_resolve_references()
    url = config.run_dir = f"{root}/runs/staged"
    with proxy.failing(every=40), monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(RuntimeError, match="the machine is gone"):
            train(config, console=SILENT)
        patch.undo()
        assert list_steps(url) == [2, 3]
        (as_path(url) / "checkpoints" / "3" / "commit_success.txt").unlink()  # as a kill within the upload leaves it
        assert list_steps(url) == [2]
        train(config, console=SILENT)
        exported, local = as_path(f"{root}/exported"), tmp_path / "exported"
        for run, output in ((url, exported), (on_disk, local)):
            assert main(["export", "--checkpoint", str(run), "--output", str(output)]) == 0
        assert main(["import", str(exported), "--out", f"{root}/imported"]) == 0
        for folder in (exported, as_path(f"{root}/imported")):
            assert_same_arrays(open_hf(folder)[1], open_hf(local)[1])
        assert proxy.faults >= 5
    assert list_steps(url) == [3, 4]
    assert_same_run(as_path(url), on_disk, 4)


@pytest.mark.slow
def test_two_processes_write_one_bucket_and_one_resumes(gcs, make_config, tmp_path) -> None:
    config = make_config(tmp_path / "shared")
    config.steps, config.data.validation, config.batch_size, config.mesh.fsdp = 4, "", 4, 2
    config.model.overrides.vision.update({"depth": 1, "full_attention_blocks": (0,)})
    url = "gs://bucket/runs/shared"
    named = ["--coordinator", f"localhost:{stores.free_port()}", "--processes", "2"]
    words = [[f"--config.run_dir={url}", *named, "--process", str(index)] for index in range(2)]
    launched.finish([launched.launch(config, *some) for some in words])
    assert list_steps(url) == [2, 4]
    before = launched.metric_lines(url)
    remove_folder(as_path(url) / "checkpoints" / "4")
    launched.finish([launched.launch(config, f"--config.run_dir={url}", devices=2)])
    after = launched.metric_lines(url)
    assert [line["step"] for line in after] == [1, 2, 3, 4]
    assert after[:2] == before[:2]
    np.testing.assert_allclose([line["loss"] for line in after], [line["loss"] for line in before], rtol=1e-4)


@pytest.mark.slow
def test_a_run_in_a_bucket_survives_a_storm_of_kills(gcs, make_config, tmp_path: Path, request) -> None:
    if "slow" not in request.config.getoption("markexpr"):
        pytest.skip("twenty starts take half an hour; -m slow was not given")
    config = make_config(tmp_path / "on_disk")
    config.steps, config.checkpoint_every, config.batch_size, config.eval_every = 120, 3, 2, 50
    config.model.overrides.vision.update({"depth": 1, "full_attention_blocks": (0,)})
    launched.finish([launched.launch(config)])
    url, rng, temporary = "gs://bucket/runs/storm", random.Random(0), tmp_path / "temporary"
    temporary.mkdir()
    words, variables = f"--config.run_dir={url}", {"TMPDIR": str(temporary)}
    with gcs.failing(every=40):
        for _ in range(20):
            before, sent = list_steps(url), rng.choice((signal.SIGKILL, signal.SIGTERM))
            process = launched.launch(config, words, variables=variables)
            if rng.random() < 0.2:  # while it starts
                time.sleep(10 * rng.random())
            else:
                until = time.monotonic() + 2 * launched.LONGEST_S
                while list_steps(url) == before and process.poll() is None and time.monotonic() < until:
                    time.sleep(0.2)
                time.sleep(rng.random())
            process.send_signal(sent)
            launched.finish([process], code={signal.SIGKILL: (-9,), signal.SIGTERM: (75, -15)}[sent])
            print(f"{sent.name}: {before} -> {list_steps(url)}, {gcs.faults} of {gcs.requests} requests failed")
        launched.finish([launched.launch(config, words, variables=variables)], longest_s=3 * launched.LONGEST_S)
    assert_same_run(as_path(url), tmp_path / "on_disk", config.steps)
    assert not list(temporary.iterdir())
    assert not list(Path.cwd().glob("gs:*"))
