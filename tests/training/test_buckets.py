"""A run whose folder is in a bucket: killed, resumed, and the same bits as on disk."""

import os
import signal
import time
from pathlib import Path

import launched
import numpy as np
from ml_collections import ConfigDict

from swjax.hub import open_hf
from swjax.runs.folder import list_steps, open_run_model
from swjax.storage import as_path, list_files


def launch(config: ConfigDict, url: str):
    return launched.launch(config, f"--config.run_dir={url}")


def lines_of(folder) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


def assert_same_weights(left, right) -> None:
    assert left.keys() == right.keys()
    for path, array in left.items():
        found = (stored.read_rows(0, stored.shape[0]) for stored in (array, right[path]))
        np.testing.assert_array_equal(*(rows.view(np.uint32) for rows in found), err_msg=path)


def test_a_run_in_a_bucket_is_killed_and_resumed_and_ends_as_on_disk(gcs, make_config, tmp_path: Path) -> None:
    config = make_config(tmp_path / "on_disk")
    config.steps, config.batch_size, config.eval_every = 8, 2, 4
    config.model.overrides.vision.update({"depth": 1, "full_attention_blocks": (0,)})
    launched.finish([launched.launch(config)])
    url = "gs://bucket/runs/killed"
    with gcs.failing(every=25):
        process = launch(config, url)
        until = time.monotonic() + 120
        while not list_steps(url) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        launched.finish([process], code=-signal.SIGKILL)
        stopped = list_steps(url)[-1]
        assert 0 < stopped < config.steps
        said = launched.finish([launch(config, url)])
    assert f"{url}: going on from step {stopped} of 8" in said[0].replace("\n", "")
    assert gcs.faults > 5
    on_disk, run_dir = tmp_path / "on_disk", as_path(url)
    assert lines_of(run_dir) == lines_of(on_disk)
    assert_same_weights(open_run_model(run_dir, 8), open_run_model(on_disk, 8))
    made = {name.partition("/")[0] for name in list_files(run_dir)}
    assert made == {os.fspath(path.name) for path in on_disk.iterdir()}
    assert not list(Path.cwd().glob("gs:*"))
    assert open_hf
