"""Runs as users start them: `swjax train` in processes of their own."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from swjax.runs.folder import list_steps
from swjax.storage import AnyPath, as_path
from swjax.training.config import flatten
from swjax.training.speed import SPEED

LONGEST_S = 300

CONFIG_FILE = """
import json
from ml_collections import ConfigDict
from swjax.training.config import base_config

def get_config():
    config = base_config()
    for path, value in json.loads({content!r}).items():
        *groups, name = path.split(".")
        node = config
        for group in groups:
            node = node[group]
        node[name] = tuple(value) if isinstance(value, list) else value
    return config
"""


def launch(
    config: ConfigDict, *arguments: str, devices: int = 1, variables: Mapping[str, str] | None = None
) -> subprocess.Popen:
    """Starts one process with so many CPU devices. Its file of a configuration lies beside the run folder."""
    file = Path(config.run_dir).with_suffix(".py")
    file.write_text(CONFIG_FILE.format(content=json.dumps(flatten(config))))
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        # Compiled in little time: what is tested does not depend on how fast a step is.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **(variables or {}),
    }
    command = [sys.executable, "-m", "swjax.commands.main", "train", "--config", str(file), *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


def launch_by_hand(config: ConfigDict, processes: int, *, devices: int) -> list[subprocess.Popen]:
    """Starts processes that are told of each other."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    named = ["--coordinator", coordinator, "--processes", str(processes)]
    return [launch(config, *named, "--process", str(index), devices=devices) for index in range(processes)]


def launch_by_slurm(config: ConfigDict, processes: int, *, devices: int) -> list[subprocess.Popen]:
    """Starts processes with the variables that Slurm gives to the tasks of one node."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    job = {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(processes),
        "JAX_COORDINATOR_PORT": str(port),
    }
    return [
        launch(
            config,
            devices=devices,
            variables=job | {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)},
        )
        for index in range(processes)
    ]


def finish(
    processes: Sequence[subprocess.Popen], *, code: int | tuple[int, ...] = 0, longest_s: float = LONGEST_S
) -> list[str]:
    """Waits for processes and makes sure how they ended; returns what they said."""
    with _ended(processes):
        said = [process.communicate(timeout=longest_s)[0] for process in processes]
    codes = [process.returncode for process in processes]
    allowed = (code,) if isinstance(code, int) else code
    assert all(found in allowed for found in codes), (codes, *said)
    return said


def wait_for_step(run_dir: str | Path, step: int, processes: Sequence[subprocess.Popen]) -> None:
    """Waits until a step stands in the metrics; if one of the processes ends before, so do the others."""
    file = Path(run_dir) / "metrics.jsonl"
    _wait(lambda: file.exists() and f'{{"step": {step}, ' in file.read_text(), f"step {step}", processes)


def wait_for_checkpoint(run_dir: str | Path, after: int, processes: Sequence[subprocess.Popen]) -> None:
    """Waits until there is a whole checkpoint of a later step, so that who starts again has come further."""
    _wait(lambda: max(list_steps(run_dir), default=0) > after, f"checkpoint after step {after}", processes)


def _wait(reached: Callable[[], bool], what: str, processes: Sequence[subprocess.Popen]) -> None:
    latest = time.monotonic() + LONGEST_S
    while not reached():
        over = [process for process in processes if process.poll() is not None]
        if over or time.monotonic() > latest:
            with _ended(processes):
                raise AssertionError(over[0].communicate()[0] if over else f"no {what} in {LONGEST_S} s")
        time.sleep(0.005)


@contextlib.contextmanager
def _ended(processes: Sequence[subprocess.Popen]) -> Iterator[None]:
    """Leaves no process behind, whatever happens."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def metric_lines(run_dir: str | AnyPath) -> list[dict]:
    """The lines of metrics.jsonl, without the run's speed, which is never twice the same."""
    lines = [json.loads(line) for line in (as_path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in SPEED} for line in lines]
