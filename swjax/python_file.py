"""Functions in Python files that a user names: configurations, sweeps, metrics."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class PythonFileError(ValueError):
    """The function of a file cannot be called, or fails; the message names the file."""


def call_python_file(path: str | Path, function: str, *arguments: Any, kind: str) -> Any:
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
