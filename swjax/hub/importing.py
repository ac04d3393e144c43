"""Released checkpoints brought to where training reads them: fetched or copied, and checked before a pod is asked for.

Training reads Hugging Face folders as they are, each process what its devices hold, so nothing is converted: a second
format would take the disk twice and be read no faster.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from rich.progress import track

from swjax.atomic import replacing
from swjax.hub.errors import CheckpointError
from swjax.hub.files import INDEX
from swjax.hub.progress import STDERR
from swjax.hub.reader import HUB_PATTERNS, download, open_hf
from swjax.hub.tokenizer_files import TEMPLATES
from swjax.hub.writer import UNFINISHED
from swjax.models.config import ModelConfig
from swjax.storage import AnyPath, as_path, copy_file, is_remote, make_folder, resolved

# Either of these holds the whole vocabulary.
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_OTHERS = ("tokenizer_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class Checked:
    """What a folder was found to hold.

    Attributes:
        folder: the folder.
        config: the model's configuration.
        parameters: how many numbers.
        dtypes: names of the dtypes of the weights.
        lacking: files of tokenizer or processor that are not there.
    """

    folder: AnyPath
    config: ModelConfig
    parameters: int
    dtypes: tuple[str, ...]
    lacking: tuple[str, ...]


def import_checkpoint(source: str | AnyPath, out: AnyPath | None) -> Checked:
    """Fetch a checkpoint from the Hub, or copy one, and check that every tensor is there with the right shape.

    Cut off, the same call resumes with what is there; until the end, the folder does not load.

    Args:
        source: a Hub id such as "Qwen/Qwen2.5-VL-7B-Instruct", or a folder.
        out: the folder to make; None checks a folder where it lies.

    Raises:
        CheckpointError: the source is not there or damaged, or `out` holds something else.
    """
    folder = as_path(source)
    if not folder.is_dir():
        if out is None:
            raise CheckpointError(f"{source} is no folder here; to fetch it from the Hub, say where to with --out")
        _refuse_other(out)
        if not is_remote(out):
            return check_checkpoint(download(str(source), Path(out)))
        _copy(download(str(source)), out)  # by way of the Hub's own cache
        return check_checkpoint(out)
    checked = check_checkpoint(folder)
    if out is None or resolved(out) == resolved(folder):
        return checked
    _refuse_other(out)
    _copy(folder, out)
    return check_checkpoint(out)


def check_checkpoint(folder: AnyPath) -> Checked:
    """Check that every tensor of a Hugging Face folder is there with the right shape, and look for its tokenizer.

    Raises:
        CheckpointError: a file or a tensor is missing or damaged, or the weights are no floating-point numbers.
    """
    config, stored = open_hf(folder)
    dtypes = tuple(sorted({array.dtype.name for array in stored.values()}))
    lacking = [name for name in _OTHERS if not (folder / name).exists()]
    if not any(all((folder / name).exists() for name in names) for names in _VOCABULARIES):
        lacking.append("tokenizer.json")
    parameters = sum(int(np.prod(array.shape)) for array in stored.values())
    return Checked(folder, config, parameters, dtypes, tuple(lacking))


def _refuse_other(out: AnyPath) -> None:
    if not out.exists():
        return
    # `.cache` is where the Hub keeps account of a download.
    known = (*HUB_PATTERNS, f"*{UNFINISHED}", "*.partial", ".cache", TEMPLATES, "*.md", "LICENSE*", ".git*")
    others = [file.name for file in out.iterdir() if not _matches(file.name, known)] if out.is_dir() else [out.name]
    if others:
        raise CheckpointError(f"{out} is there and holds {others[0]}, which is of no checkpoint; choose another --out")


def _copy(folder: AnyPath, out: AnyPath) -> None:
    make_folder(out)
    files = [file for file in folder.iterdir() if file.is_file() and _matches(file.name, HUB_PATTERNS)]
    files += (folder / TEMPLATES).glob("*.jinja")
    # Last what makes a checkpoint of a folder.
    files.sort(key=lambda file: (file.name in (INDEX, "config.json"), file.name))
    (out / "config.json").unlink(missing_ok=True)
    for file in track(files, "copying", transient=True, console=STDERR):
        target = out / file.relative_to(folder)
        make_folder(target.parent)
        with replacing(target) if not is_remote(target) else contextlib.nullcontext(target) as unfinished:
            copy_file(file, unfinished)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
