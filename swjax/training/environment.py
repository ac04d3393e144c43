"""What a run was made with: versions, source, devices and command line, for whoever wants to repeat it."""

import datetime
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

import swjax
from swjax.data.json_lines import cut_half_line, readable_lines
from swjax.plain import Json
from swjax.storage import AnyPath, append_line, as_path, list_files, sync_logs

ENVIRONMENT = "environment.jsonl"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "av", "numpy")


def record_start(run_dir: AnyPath, *, step: int, data: Mapping[str, str] | None = None) -> None:
    """Appends a line on this start of the run to the run folder's environment.jsonl, after half a line is cut off.

    Args:
        run_dir: the run folder.
        step: steps that were already taken.
        data: name -> fingerprint of what the run reads.
    """
    cut_half_line(run_dir / ENVIRONMENT)
    append_line(run_dir / ENVIRONMENT, json.dumps(describe_environment() | {"step": step, "data": dict(data or {})}))
    sync_logs()


def fingerprint_data(names: str) -> dict[str, str]:
    """Tells data sets apart: name -> SHA-256 of a manifest, or of a record folder's description and its files' sizes.

    Args:
        names: data sets as `swjax.data.sources` opens them, separated by commas; none of "".
    """
    found = {}
    for name in filter(None, (name.strip() for name in names.split(","))):
        folder = as_path(name if as_path(name).exists() else name.rpartition(":")[0])
        digest = hashlib.sha256()
        if folder.is_file():
            with folder.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256")
        else:
            for file, size in sorted(list_files(folder).items(), key=lambda found: folder / found[0]):
                digest.update(f"{file} {size}\n".encode())
                if file.rpartition("/")[2] == "dataset_info.json":
                    digest.update((folder / file).read_bytes())
        found[name] = digest.hexdigest()
    return found


def changed_data(run_dir: AnyPath, data: Mapping[str, str]) -> list[str]:
    """The data sets, by name, that are not what they were when the run was last started, as far as that is known."""
    last: Mapping[str, str] = {}
    for start in recorded_starts(run_dir):
        last = start.get("data", {})
    return [name for name, digest in data.items() if last.get(name, digest) != digest]


def recorded_starts(run_dir: AnyPath) -> Iterator[Json]:
    """What was written down at each start of the run (`describe_environment`, `step` and `data`); spoiled lines not."""
    return readable_lines(run_dir / ENVIRONMENT, ["step", "commit"])


def describe_environment() -> Json:
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
