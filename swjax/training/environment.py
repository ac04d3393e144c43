"""What a run was made with: versions, source, devices and command line, for whoever wants to repeat it."""

import datetime
import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

import swjax

ENVIRONMENT = "environment.jsonl"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "av", "numpy")


def record_start(run_dir: Path, *, step: int) -> None:
    """Appends a line on this start of the run to the run folder's environment.jsonl.

    Args:
        run_dir: the run folder.
        step: steps that were already taken.
    """
    with (run_dir / ENVIRONMENT).open("a") as file:
        file.write(json.dumps(describe_environment() | {"step": step}) + "\n")


def describe_environment() -> dict[str, Any]:
    """Time, versions, git commit (None outside of a checkout), devices and command line."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "swjax": swjax.__version__,
        "commit": git_commit(Path(swjax.__file__).parent),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "devices": [str(device.device_kind) for device in jax.devices()],
        "processes": jax.process_count(),
        "command": sys.argv,
    }


def git_commit(folder: Path) -> str | None:
    """The commit that a folder is checked out at, `-dirty` if files are changed; None if git does not track it."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A package installed into an environment within somebody else's repository is not of that repository.
    is_tracked = git("ls-files", "--error-unmatch", "__init__.py") is not None
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") if is_tracked else None
