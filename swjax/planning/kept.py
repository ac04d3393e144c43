"""Plans that were made before, so that a search that was cut off need not compile for minutes what it has compiled.

They lie beside the copies of what is in buckets (`swjax.storage.cache`), a file each, and are found again by all that
they follow from: the lowered program, the chips, the compiler's version, and this package's own text.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from swjax.atomic import write_json
from swjax.plain import Json, JsonView
from swjax.planning.clock import Operation, Schedule
from swjax.planning.estimate import Estimate, KernelEstimate
from swjax.storage.cache import open_cache_folder

REFUSED = "refused"
"""Key of what the compiler said where it refused the program."""


def kept_file(lowered: jax.stages.Lowered, *given: object) -> Path:
    """Where the plan of a lowered program is kept, if it has been made.

    Args:
        lowered: the program.
        given: what the plan follows from beside it.

    Raises:
        StorageError: the folder belongs to another user.
    """
    digest = hashlib.sha256(lowered.as_text().encode())
    for part in (*given, jax.__version__, _version("libtpu")):
        digest.update(repr(part).encode())
    for source in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(source.read_bytes())
    folder = open_cache_folder() / "plans"
    folder.mkdir(exist_ok=True)
    return folder / f"{digest.hexdigest()[:40]}.json"


def read_kept(file: Path) -> Json | None:
    """The fields of a plan, its estimate as one; None where none has been kept. Refusals have `REFUSED` alone."""
    if not file.exists():
        return None
    fields = json.loads(file.read_text())
    if fields.get("estimate"):
        fields["estimate"] = _estimate(fields["estimate"])
    return dict(fields)


def keep(file: Path, plan: Any) -> None:
    """Write a plan, or a mapping with `REFUSED`, for the next time."""
    write_json(file, dict(plan) if isinstance(plan, Mapping) else dataclasses.asdict(plan))


def _estimate(fields: JsonView) -> Estimate:
    schedule = dict(fields["schedule"])
    schedule["operations"] = [Operation(**one) for one in schedule["operations"]]
    return Estimate(Schedule(**schedule), {name: KernelEstimate(**one) for name, one in fields["kernels"].items()})


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
