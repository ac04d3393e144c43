"""Functions in Python files that a user names: configurations, sweeps, metrics."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from swjax.storage import AnyPath, as_path, local_file


class PythonFileError(ValueError):
    """The function of a file cannot be called, or fails; the message names the file."""


def find_config(name: str | AnyPath, *, kind: str) -> Path:
    """The file of a configuration or sweep: `FILE.py` stands for itself, another name for one that is shipped.

    A wheel holds the repository's configs/ as swjax/configs.

    Args:
        name: such as `my/experiment.py`, `moving_shapes` or `sweeps/gipe_gap`. One in a bucket is copied, without its
            neighbours.
        kind: what the file is, in the message.

    Raises:
        PythonFileError: if it is no file and none that is shipped; the message lists those.
    """
    try:
        path = local_file(as_path(name))
    except FileNotFoundError:
        raise PythonFileError(f"there is no {kind} {name}") from None
    if path.is_file():
        return path
    package = Path(str(files("swjax")))
    folder = next(filter(Path.is_dir, (package / "configs", package.parent / "configs")), None)
    shipped = (
        {} if folder is None else {file.relative_to(folder).with_suffix(""): file for file in folder.rglob("*.py")}
    )
    if path in shipped:
        return shipped[path]
    names = ", ".join(sorted(known.as_posix() for known in shipped if not known.name.startswith("_")))
    raise PythonFileError(f"there is no {kind} {path}; give a file, or one that comes with swjax: {names}")


def call_python_file(path: str | Path, function: str, *arguments: object, kind: str) -> Any:
    """Run a Python file and call one of its functions.

    Args:
        path: the file.
        function: its name there.
        arguments: what it is called with.
        kind: what the file is, in messages, such as "configuration file".

    Raises:
        PythonFileError: if there is no such file, or the file or the function fails.
    """
    path = Path(path)
    if not path.is_file():
        raise PythonFileError(f"there is no {kind} {path}; give a Python file with {function}()")
    spec = importlib.util.spec_from_file_location("swjax_python_file", path)
    if spec is None or spec.loader is None:
        raise PythonFileError(f"{path} is not a Python file; a {kind} is one with {function}()")
    module = importlib.util.module_from_spec(spec)
    try:
        with _importing_from(path.parent):
            spec.loader.exec_module(module)
            return getattr(module, function)(*arguments)
    except Exception as error:  # the file is a program, and may fail in any way
        raise PythonFileError(f"{path}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Let a file import its neighbours, and forget them again: another folder may have others of the same names."""
    place, before = str(folder.absolute()), set(sys.modules)
    sys.path.insert(0, place)
    try:
        yield
    finally:
        sys.path.remove(place)
        for name in set(sys.modules) - before:
            if str(Path(getattr(sys.modules[name], "__file__", None) or "").parent) == place:
                del sys.modules[name]
