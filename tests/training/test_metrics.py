import io
import json
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from swjax.training.config import ConfigError, base_config
from swjax.training.metrics import log_lines, open_metrics
from swjax.training.profiling import trace_steps
from swjax.training.run import train


def test_metrics_go_to_wandb_under_one_id_for_all_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list = []
    named: list = []
    settings = {"project": "streaming", "entity": "team", "name": "", "tags": ("a", "b")}

    class FakeRun:
        def log(self, metrics: dict, step: int) -> None:
            said.append((step, metrics))

        def finish(self) -> None:
            said.append("finished")

    def init(**arguments: object) -> FakeRun:
        said.append((arguments["project"], arguments["id"], arguments["config"]))
        named.append([arguments[name] for name in ("entity", "name", "tags")])
        return FakeRun()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for step in (1, 2):
        with open_metrics(tmp_path, after_step=step - 1, wandb=settings, config={"seed": 3}) as write:
            write(step, {"loss": 0.5})
    first, second = said[:3], said[3:]
    assert named == [["team", tmp_path.name, ["a", "b"]]] * 2
    assert first[0] == second[0]
    assert first[0][0] == "streaming"
    assert first[0][2] == {"seed": 3}
    assert (first[1:], second[1:]) == ([(1, {"loss": 0.5}), "finished"], [(2, {"loss": 0.5}), "finished"])


def test_wandb_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = base_config()
    config.data.train, config.model.preset = str(tmp_path / "not there"), "tiny"
    config.run_dir, config.wandb.project = str(tmp_path / "run"), "streaming"
    with pytest.raises(ConfigError, match=r"config\.wandb\.project is set and wandb is not installed; pip install"):
        train(config)  # before it looks at the data or the model
    assert not (tmp_path / "run").exists()


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


def test_the_log_has_the_first_and_the_last_step_and_every_so_many_between() -> None:
    said = io.StringIO()
    speed = {"tokens_per_second": 12345.6, "seconds_per_step": 1.234, "seconds_left": 3723.4, "mfu": 0.4567}
    with log_lines(Console(file=said, width=200), total=7, every=3) as show:
        for step in range(1, 8):
            show(step, {"loss": 1.5, "learning_rate": 2e-5, **speed})
    first, *others = said.getvalue().splitlines()
    assert first == "step 1/7: loss 1.5000, lr 2.00e-05, 12,346 tokens/s, 1.23 s/step, MFU 45.7%, 1:02:03 left"
    assert [line.split(":")[0] for line in others] == ["step 3/7", "step 6/7", "step 7/7"]


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
