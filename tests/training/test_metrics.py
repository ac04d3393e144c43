import json
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from swjax.training.config import ConfigError
from swjax.training.metrics import open_metrics
from swjax.training.profiling import trace_steps


def test_metrics_go_to_wandb_under_one_id_for_all_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list = []

    class FakeRun:
        def log(self, metrics: dict, step: int) -> None:
            said.append((step, metrics))

        def finish(self) -> None:
            said.append("finished")

    def init(**arguments: object) -> FakeRun:
        said.append((arguments["project"], arguments["id"], arguments["config"]))
        return FakeRun()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for step in (1, 2):
        with open_metrics(tmp_path, after_step=step - 1, wandb_project="streaming", config={"seed": 3}) as write:
            write(step, {"loss": 0.5})
    first, second = said[:3], said[3:]
    assert first[0] == second[0]
    assert first[0][0] == "streaming"
    assert first[0][2] == {"seed": 3}
    assert (first[1:], second[1:]) == ([(1, {"loss": 0.5}), "finished"], [(2, {"loss": 0.5}), "finished"])


def test_wandb_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(ConfigError, match=r"config\.wandb\.project is set and wandb is not installed; pip install"),
        open_metrics(tmp_path, after_step=0, wandb_project="streaming"),
    ):
        pass


def test_a_loss_that_is_not_finite_is_null(tmp_path: Path) -> None:
    with open_metrics(tmp_path, after_step=0) as write:
        write(1, {"loss": float("nan"), "grad_norm": float("inf"), "labels": 3.0})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"step": 1, "loss": None, "grad_norm": None, "labels": 3.0}


def test_steps_that_are_taken_again_and_spoiled_lines_are_dropped(tmp_path: Path) -> None:
    kept = b'{"step": 1, "loss": 0.1}\n{"step": 2, "loss": null}\n'
    (tmp_path / "metrics.jsonl").write_bytes(kept + b'\0\0\n{"loss": 1.0}\n{"step": 3, "loss": 0.5}\n{"step": 2, "lo')
    with open_metrics(tmp_path, after_step=2):
        assert (tmp_path / "metrics.jsonl").read_bytes() == kept


def test_the_steps_asked_for_are_traced(tmp_path: Path) -> None:
    double = jax.jit(lambda x: x * 2)
    found = []
    with trace_steps(tmp_path, "2:3") as (before, after):
        for step in range(1, 5):
            before(step)
            after(step, double(jnp.ones(3)))
            found.append(len(list(tmp_path.rglob("*.xplane.pb"))))
    assert found == [0, 0, 1, 1]
    with trace_steps(tmp_path / "none", "") as (before, after):
        before(1)
        after(1, double(jnp.ones(3)))
    assert not (tmp_path / "none").exists()
