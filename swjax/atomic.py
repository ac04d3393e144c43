"""Files that appear under their name only when they are whole: who reads one, or a kill, finds the old or the new."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from swjax.storage import AnyPath, is_remote, writing_file


@contextlib.contextmanager
def replacing(path: AnyPath) -> Iterator[Path]:
    """Gives a name beside a file to write to; what was written takes the file's place, unless writing it failed.

    Args:
        path: of the file.

    Yields:
        A path in the same folder; what a kill has left there is written over. One process at a time may write the file.
        For a file in a bucket, a path on disk.
    """
    if is_remote(path):
        with writing_file(path) as staged:
            yield staged
        return
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: AnyPath, content: bytes) -> None:
    """Writes a file as a whole."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: AnyPath, text: str) -> None:
    """Writes a text file (UTF-8) as a whole."""
    write_bytes(path, text.encode())


def write_json(path: AnyPath, content: object) -> None:
    """Writes a value as a JSON file, indented, as a whole."""
    write_text(path, json.dumps(content, indent=2) + "\n")
