"""Real processes that train as one, on localhost."""

import json
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import jax
import launched
import numpy as np
import pytest
from rich.console import Console

from swjax.data.place import divide_place
from swjax.models.parameters import split_parameters
from swjax.runs.folder import find_step, load_run
from swjax.training.config import ConfigError
from swjax.training.preemption import EXIT_PREEMPTED
from swjax.training.processes import OF_A_CLUSTER, start_processes
from swjax.training.run import train

STEPS = 16


def losses_of(run_dir: str | Path) -> np.ndarray:
    return np.array([line["loss"] for line in launched.metric_lines(run_dir)])


@pytest.mark.slow
def test_four_slices_train_as_one_and_two_and_one_resume(make_config, tmp_path: Path) -> None:
    """Four processes, a slice each, are asked to stop by a signal to one of them; fewer resume from what they saved.

    Two take half of the rows at once, twice a step; one takes all. Each step has the rows that it would have had.
    """
    config = make_config(tmp_path / "alone")
    config.update({"steps": STEPS, "checkpoint_every": 30, "eval_every": 20})
    config.optimizer.learning_rate = 1e-3
    config.model.overrides.vision.update({"depth": 1, "full_attention_blocks": (0,)})
    config.mesh.data, config.mesh.fsdp, config.data.validation = 2, 4, ""
    train(config, console=Console(quiet=True))

    shared = config.copy_and_resolve_references()
    shared.run_dir, shared.mesh.data, shared.mesh.fsdp, shared.mesh.slices = str(tmp_path / "shared"), 4, 1, 4
    four = launched.launch_by_hand(shared, 4, devices=1)
    launched.wait_for_step(shared.run_dir, 3, four)
    four[2].send_signal(signal.SIGTERM)
    launched.finish(four, code=EXIT_PREEMPTED)
    stopped = find_step(shared.run_dir)
    assert 3 < stopped < STEPS
    saved = {file.name for file in (tmp_path / "shared" / "checkpoints" / str(stopped) / "data").glob("*.json")}
    assert saved >= {f"process_{index}-of-4.json" for index in range(4)}

    by_one = shared.copy_and_resolve_references()
    by_one.run_dir, by_one.mesh = str(tmp_path / "by_one"), config.mesh
    shutil.copytree(shared.run_dir, by_one.run_dir)
    shared.mesh.data, shared.mesh.fsdp, shared.mesh.slices = 2, 2, 2
    shared.batch_size, shared.accumulation = shared.batch_size // 2, 2
    launched.finish(launched.launch_by_slurm(shared, 2, devices=2))
    train(by_one, console=Console(quiet=True))

    expected = {path: np.asarray(leaf) for path, leaf in split_parameters(load_run(config.run_dir).model)[1].items()}
    for run_dir, processes in ((shared.run_dir, [4, 2]), (by_one.run_dir, [4, 1])):
        starts = [json.loads(line) for line in (Path(run_dir) / "environment.jsonl").read_text().splitlines()]
        assert [start["processes"] for start in starts] == processes
        assert [start["step"] for start in starts] == [0, stopped]
        np.testing.assert_allclose(losses_of(run_dir), losses_of(config.run_dir), rtol=1e-4)
        for path, leaf in split_parameters(load_run(run_dir).model)[1].items():
            difference = np.linalg.norm(leaf - expected[path]) / np.linalg.norm(expected[path])
            # Keys' biases hardly change attention: their gradients are rounding, of which Adam makes steps.
            assert difference < (0.3 if path.endswith("k_bias_kh") else 1e-3), path


@pytest.mark.parametrize(("before", "after"), [(4, 2), (4, 1), (2, 4), (1, 3), (3, 2)])
def test_the_place_of_the_input_is_divided_anew(before: int, after: int) -> None:
    """Every example that is left is read once by the new processes, in the old order."""
    states = [{"parent": {"next_row": 12 // before}, "next_index_in_buffer": 1}] * before
    left = []
    for process in range(after):
        fresh = {"parent": {"next_row": 0}, "next_index_in_buffer": 0}
        place = divide_place(states, fresh, parts=before, part=(process, after))
        assert place["next_index_in_buffer"] == 0
        left += list(range(30))[process::after][place["parent"]["next_row"] :]
    assert sorted(left) == list(range(12, 30))


def test_a_process_that_has_read_more_makes_the_others_examples_come_again() -> None:
    states: list[Mapping] = [{"next_row": 5}, {"next_row": 7}]
    assert divide_place(states, {"next_row": 0}, parts=2, part=(0, 1)) == {"next_row": 10}


@pytest.fixture
def initialized(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The calls of `jax.distributed.initialize`, which are not carried out."""
    calls: list[tuple] = []
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **named: calls.append(given))
    return calls


def test_processes_are_told_of_each_other_by_argument_or_variable(initialized, monkeypatch) -> None:
    start_processes("host:1", 4, 2)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "other:2")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "8")
    start_processes(process=7)
    assert initialized == [("host:1", 4, 2), ("other:2", 8, 7)]


def test_a_process_alone_joins_nobody(initialized, monkeypatch) -> None:
    start_processes("host:1", 1, 0)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    start_processes()
    assert initialized == []


def test_a_process_that_uses_devices_stays_alone_only_where_there_are_no_others(monkeypatch) -> None:
    assert jax.devices()
    for name in OF_A_CLUSTER:
        monkeypatch.delenv(name, raising=False)
    start_processes()
    assert jax.process_count() == 1
    assert not jax.distributed.is_initialized()
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(RuntimeError, match="must be called before"):
        start_processes()


@pytest.mark.parametrize("error", [ValueError("process 3 of 2"), RuntimeError("timed out")], ids=["value", "time"])
def test_a_cluster_that_cannot_be_joined_is_no_process_alone(initialized, monkeypatch, error: Exception) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    with pytest.raises(type(error), match=str(error)):
        start_processes()


def test_the_tasks_of_a_job_join_each_other(initialized, monkeypatch) -> None:
    names = ("JOB_ID", "STEP_NODELIST", "PROCID", "LOCALID")
    for name, value in [("NTASKS", "2"), *((name, "0") for name in names)]:
        monkeypatch.setenv(f"SLURM_{name}", value)
    start_processes()
    assert initialized == [()]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("host:1", 4, None), r"add --process \(or JAX_PROCESS_ID\)"),
        (("host:1", 4, 4), r"--process is 4 of --processes 4; it must be from 0 to 3"),
        (("host", 4, 0), r"--coordinator is 'host'; give host:port"),
    ],
)
def test_processes_that_cannot_find_each_other_are_refused(initialized, given: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        start_processes(*given)
