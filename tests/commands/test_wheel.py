"""The wheel, installed where there is no repository: configurations by name, and the quickstart from any folder."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with an environment of its own: this one's packages, with the wheel in the place of the repository.

    The packages are reached by a path in a .pth file, which reads no .pth file there: that of the repository is off.
    """
    root = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(root), str(ROOT)]
    subprocess.run([*pip, *build], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / "env")], check=True)
    (wheel,) = root.glob("swjax-*.whl")
    subprocess.run([*pip, "--python", str(root / "env/bin/python"), "install", "--no-deps", str(wheel)], check=True)
    (packages,) = (root / "env").glob("lib/python*/site-packages")
    (packages / "packages.pth").write_text(sysconfig.get_path("purelib"))
    (root / "cwd").mkdir()
    return root


def run(installed: Path, *words: str) -> str:
    """Run a program of the environment in an empty folder; returns what it prints."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    command = [str(installed / "env/bin" / words[0]), *words[1:]]
    done = subprocess.run(command, cwd=installed / "cwd", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_package_is_the_wheel_alone(installed):
    shown = run(installed, "python", "-c", "import sys, swjax; print(swjax.__file__, sys.path)")
    assert shown.startswith(str(installed / "env"))
    assert str(ROOT) not in [entry.strip("'[] \n") for entry in shown.split(", ")]
    assert "quickstart" in run(installed, "swjax", "--help")
    assert "gdpe" in run(installed, "swjax", "layout", "--variant", "gdpe", "--grid", "1x1", "--frames", "2")


def test_configurations_have_names(installed):
    assert "runs/sweeps/base" in run(installed, "swjax", "train", "--config", "moving_shapes_base", "--show-config")
    jobs = run(installed, "swjax", "sweep", "--config", "sweeps/gipe_gap", "--print-jobs").splitlines()
    assert len(jobs) == 18


@pytest.mark.slow
def test_the_quickstart_runs_in_any_folder(installed):
    small = "{'text': {'num_layers': 1}, 'vision': {'depth': 1, 'full_attention_blocks': [0]}}"
    words = ["--train", "8", "--validation", "4", "--held-out", "2", "--config.steps=2", "--config.batch_size=4"]
    shown = run(installed, "swjax", "quickstart", *words, f"--config.model.overrides={small}")
    assert "a model learned, from nothing" in shown
    folder = installed / "cwd"
    assert {path.name for path in folder.iterdir()} == {"data", "runs", "exports"}
    scores = json.loads((folder / "runs/moving_shapes/evaluation/scores.json").read_text())
    assert scores["model"]["videos"] == 2
    assert (folder / "exports/moving_shapes/model.safetensors").is_file()
