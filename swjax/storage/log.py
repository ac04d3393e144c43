"""Files that grow line by line. A store cannot append: there, a log is written anew as a whole, behind the run.

What was written since is lost with a killed process, so whoever saves a state that the log belongs to calls
`sync_logs` before.
"""

import atexit
import contextlib
import threading
import time
import weakref
from collections.abc import Iterator
from typing import IO, Protocol

from swjax.notice import notify
from swjax.storage.files import is_remote, write_object
from swjax.storage.paths import AnyPath

EVERY_S = 15.0
"""Seconds between two writings of a log in a bucket; ten times as long as the writing takes, if that is longer."""


class Log(Protocol):
    """What can be written to."""

    def write(self, text: str, /) -> object:
        """Appends a text."""


class BucketLog:
    """The bytes of a file in a bucket and what was appended to them; a thread writes them there from time to time."""

    def __init__(self, path: AnyPath, *, keep: bool = True) -> None:
        """Opens a log; `keep` is whether what the file holds stays."""
        self.path = path
        self.closed = False
        self._content = bytearray(path.read_bytes() if keep and path.exists() else b"")
        self._written = len(self._content)
        self._lock = threading.Lock()  # of one writing at a time
        self._closing = threading.Event()
        _open_logs.add(self)
        threading.Thread(target=self._write_from_time_to_time, name=f"log {path.name}", daemon=True).start()

    def write(self, data: str | bytes) -> int:
        """Appends; returns at once."""
        self._content += data.encode() if isinstance(data, str) else data
        return len(data)

    def flush(self) -> None:
        """Does nothing: what was written reaches the store from time to time, and at `sync`."""

    def sync(self) -> None:
        """Returns once the store has all that was appended.

        Raises:
            StorageError: the store does not take it.
        """
        with self._lock:
            content = bytes(self._content)
            if len(content) != self._written:
                write_object(self.path, content)
                self._written = len(content)

    def close(self) -> None:
        """Writes the rest."""
        if not self.closed:
            self.closed = True
            self._closing.set()
            self.sync()
            _open_logs.discard(self)

    def discard(self) -> None:
        """Writes no more."""
        self.closed = True
        self._closing.set()
        _open_logs.discard(self)

    def _write_from_time_to_time(self) -> None:
        pause = EVERY_S
        while not self._closing.wait(pause):
            began = time.monotonic()
            try:
                self.sync()
            except Exception as error:  # the run is worth more than its log, and the next writing has all of it
                notify(f"{self.path} is behind: {error}")
            pause = max(EVERY_S, 10 * (time.monotonic() - began))


_open_logs: "weakref.WeakSet[BucketLog]" = weakref.WeakSet()
_appended: dict[str, BucketLog] = {}


def sync_logs() -> None:
    """Returns once all logs of this process in buckets hold what was written to them.

    Raises:
        StorageError: the store does not take it.
    """
    for log in list(_open_logs):
        log.sync()


atexit.register(sync_logs)


def append_line(path: AnyPath, line: str) -> None:
    """Appends a line to a text file (UTF-8), made if need be; in a bucket, as logs are written (`sync_logs`)."""
    if is_remote(path):
        if str(path) not in _appended:
            _appended[str(path)] = BucketLog(path)
        _appended[str(path)].write(line + "\n")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def forget_log(path: AnyPath) -> None:
    """Lets `append_line` look anew at a file in a bucket, which was replaced or removed."""
    log = _appended.pop(str(path), None)
    if log is not None:
        log.discard()


@contextlib.contextmanager
def open_log(path: AnyPath) -> Iterator[Log | IO[str]]:
    """Opens a text file (UTF-8) to append lines to; on disk, each line is there when it is written."""
    if not is_remote(path):
        with path.open("a", buffering=1, encoding="utf-8") as file:
            yield file
        return
    log = BucketLog(path)
    try:
        yield log
    finally:
        log.close()
