"""Files of records: JSON lines, a JSON list, Parquet, and folders of Hugging Face `datasets`."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

from swjax.data.fields import FieldError
from swjax.data.json_lines import JsonLineError, json_type, parse_line, read_lines
from swjax.data.manifest import ManifestError
from swjax.plain import Json

Record = tuple[str, Json | Exception]
"""Where a record stands, for messages, and the record, or what is wrong with it."""

CHAT = "conversation"
"""The name under which a line that is a list, a chat by itself, becomes a record."""

_COLUMNS = (".parquet", ".arrow")
OTHER_SUFFIXES = (".json", *_COLUMNS)
"""Files that are not read line by line."""

_ROWS = 256


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, or of a folder of Parquet or Arrow files.

    Raises:
        ManifestError: it is not there, or not such a file.
    """
    if path.is_dir():
        files = column_files(path)
        if not files:
            raise ManifestError(f"{path} has no Parquet or Arrow files; name a file of records in it")
        for file in files:
            yield from _read_columns(file)
    elif path.suffix in _COLUMNS:
        yield from _read_columns(path)
    else:
        yield from _read_json(path)


def column_files(folder: Path) -> list[Path]:
    """Parquet and Arrow files of a folder, as `datasets` writes them; those of a train split alone, where it has some.

    Args:
        folder: of a repository of the Hub, of `save_to_disk`, or of one of its splits.
    """
    files = sorted(file for suffix in _COLUMNS for file in folder.rglob(f"*{suffix}"))
    shown = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    train = [file for file in shown if file.name.startswith("train") or "train" in file.relative_to(folder).parts[:-1]]
    return train or shown


def _read_json(path: Path) -> Iterator[Record]:
    try:
        lines = read_lines(path)
    except FileNotFoundError as error:
        raise ManifestError(f"there is no data set {path}; check the path") from error
    except (OSError, JsonLineError) as error:
        raise ManifestError(f"{path} cannot be read as UTF-8 text: {error}") from error
    if lines and path.suffix == ".json":
        yield from _read_document(path)
        return
    for number, line in lines:
        where = f"{path.name}:{number}"
        try:
            if not line.lstrip().startswith(b"["):
                yield where, parse_line(line)
                continue
            turns = parse_line(b'{"%s": %s}' % (CHAT.encode(), line))[CHAT]
            if not all(isinstance(turn, int) for turn in turns):  # offsets of the lines, as LiveCC ends its files
                yield where, {CHAT: turns}
        except JsonLineError as error:
            yield where, error


def _read_document(path: Path) -> Iterator[Record]:
    """A JSON list of records, or an object of them by name."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        lines = read_lines(path)
        if len(lines) > 1 and lines[0][1].rstrip().endswith(b"}"):  # JSON lines under another name
            for number, line in lines:
                try:
                    yield f"{path.name}:{number}", parse_line(line)
                except JsonLineError as bad:
                    yield f"{path.name}:{number}", bad
            return
        raise ManifestError(f"{path} is not JSON: {error}") from error
    if isinstance(content, dict) and content and all(isinstance(value, dict) for value in content.values()):
        for name, record in content.items():
            yield f"{path.name}[{name!r}]", {"video_id": name, **record}
        return
    for number, record in enumerate(content if isinstance(content, list) else [content]):
        is_object = isinstance(record, dict)
        wrong = FieldError(f"expected a JSON object, found {json_type(record)}")
        yield f"{path.name}[{number}]", record if is_object else wrong


def _read_columns(file: Path) -> Iterator[Record]:
    """Rows of a Parquet file, or of the stream that `datasets` keeps in .arrow files."""
    try:
        arrow = importlib.import_module("pyarrow")
        batches = (
            importlib.import_module("pyarrow.parquet").ParquetFile(file).iter_batches(_ROWS)
            if file.suffix == ".parquet"
            else importlib.import_module("pyarrow.ipc").open_stream(arrow.OSFile(str(file)))
        )
        number = 0
        for batch in batches:
            for record in batch.to_pylist():
                yield f"{file.name}[{number}]", record
                number += 1
    except ImportError as error:
        raise ManifestError(f"{file} is read with pyarrow, which is not installed; pip install pyarrow") from error
    except (OSError, arrow.ArrowException) as error:
        raise ManifestError(f"{file} cannot be read: {error}") from error
