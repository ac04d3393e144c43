"""Runs whose folder is in a bucket: stopped, resumed, and the same bits as on disk."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import launched
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console

import swjax.training.loop
from swjax.runs.folder import list_steps, open_run_model
from swjax.storage import as_path, list_files
from swjax.training.run import train

SILENT = Console(quiet=True)


def lines_of(folder) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


def assert_same_run(left, right, step: int) -> None:
    assert lines_of(left) == lines_of(right)
    arrays = [open_run_model(folder, step) for folder in (left, right)]
    assert arrays[0].keys() == arrays[1].keys()
    for path in arrays[0]:
        found = (stored[path].read_rows(0, stored[path].shape[0]) for stored in arrays)
        np.testing.assert_array_equal(*(rows.view(np.uint32) for rows in found), err_msg=path)
    # What a start makes has other names each time.
    made = [{name.partition("/")[0] for name in list_files(folder)} for folder in (left, right)]
    assert made[0] == made[1]


def test_a_run_in_a_bucket_stops_and_resumes_and_ends_as_on_disk(
    gcs, make_config, compiled_once, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_config(tmp_path / "on_disk")
    config.steps, config.data.validation = 4, ""
    config.model.overrides.vision.update({"depth": 1, "full_attention_blocks": (0,)})
    train(config, console=SILENT)
    config.run_dir = "gs://bucket/runs/stopped"
    save = swjax.training.loop.save_checkpoint

    def save_once(checkpoints, step, *args, **kwargs):
        if step > 2:
            raise RuntimeError("the machine is gone")
        save(checkpoints, step, *args, **kwargs)

    with gcs.failing(every=40):
        monkeypatch.setattr(swjax.training.loop, "save_checkpoint", save_once)
        with pytest.raises(RuntimeError, match="the machine is gone"):
            train(config, console=SILENT)
        monkeypatch.setattr(swjax.training.loop, "save_checkpoint", save)
        assert list_steps(config.run_dir) == [2]
        train(config, console=SILENT)
    assert gcs.faults >= 5
    assert_same_run(as_path(config.run_dir), tmp_path / "on_disk", 4)
    assert {file.name for file in tmp_path.iterdir()} == {"on_disk"}, "nothing else is left on disk"


@pytest.fixture
def compiled_once(tmp_path_factory) -> Iterator[None]:
    """Keeps compiled programs for the later runs of a test."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.mark.slow
def test_a_run_in_a_bucket_survives_a_storm_of_kills(gcs, make_config, tmp_path: Path) -> None:
    config = make_config(tmp_path / "on_disk")
    config.steps, config.batch_size, config.eval_every = 24, 2, 12
    config.model.overrides.vision.update({"depth": 1, "full_attention_blocks": (0,)})
    launched.finish([launched.launch(config)])
    url = "gs://bucket/runs/storm"
    with gcs.failing(every=40):
        for number in range(20):
            before, until = list_steps(url), time.monotonic() + 120
            process = launched.launch(config, f"--config.run_dir={url}")
            while list_steps(url) == before and process.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
            sent = signal.SIGTERM if number % 2 else signal.SIGKILL
            process.send_signal(sent)
            process.communicate(timeout=launched.LONGEST_S)
            assert process.returncode in (0, 75, -sent)
        launched.finish([launched.launch(config, f"--config.run_dir={url}")])
    assert_same_run(as_path(url), tmp_path / "on_disk", config.steps)
    assert not list(Path.cwd().glob("gs:*"))
