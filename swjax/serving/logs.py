"""The log of a server: one short line for each event, few of them, and never waited for.

What clients do must not fill a disk, and whoever reads the standard error must not be able to hold the server up by not
reading it. So lines go through a queue to a thread, which writes them to the file descriptor itself: no lock is held
meanwhile that others need, not even at the end.
"""

import copy
import logging
import os
import queue
import threading
import time

LINES_PER_S = 2.0
BURST = 50
LINE_CHARACTERS = 400
TRACEBACK_CHARACTERS = 8000
QUEUE_LINES = 200


class LineHandler(logging.Handler):
    """Writes records of all threads, as lines with times, to a file descriptor.

    Faults of the server itself (errors of swjax with an exception) have their traceback; everything else is one line.

    Args:
        descriptor: where to write.
        own: name of the loggers whose errors have tracebacks.
    """

    def __init__(self, descriptor: int = 2, *, own: str = "swjax"):
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._descriptor, self._own = descriptor, own
        self._lines: queue.Queue[str] = queue.Queue(QUEUE_LINES)
        self._allowance, self._asked_s, self._left_out = float(BURST), time.monotonic(), 0
        threading.Thread(target=self._write, name="swjax-log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put a record into the queue, or count it as left out; never waits, never raises."""
        now = time.monotonic()
        self._allowance = min(BURST, self._allowance + LINES_PER_S * (now - self._asked_s))
        self._asked_s = now
        if self._allowance < 1:
            self._left_out += 1
            return
        try:
            text = self._text(record)
        except Exception:  # whoever logged it gave what cannot be formatted, perhaps a stranger's text
            text = f"{record.levelname} {record.name}: a line that cannot be shown"
        more = f" ({self._left_out} more lines were left out)" if self._left_out else ""
        try:
            self._lines.put_nowait(f"{text}{more}\n")
        except queue.Full:
            self._left_out += 1
            return
        self._allowance -= 1
        self._left_out = 0

    def drain(self, seconds: float) -> None:
        """Wait until all lines have been written, but no longer than that."""
        until = time.monotonic() + seconds
        while self._lines.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.01)

    def _text(self, record: logging.LogRecord) -> str:
        assert self.formatter is not None
        kept, plain = record.exc_info, copy.copy(record)
        plain.exc_info = plain.exc_text = plain.stack_info = None
        text = self.formatter.format(plain)
        error = kept[1] if kept else None
        if error is not None:
            text += f": {type(error).__name__}: {error}"
        text = text.replace("\r", " ").replace("\n", " ")[:LINE_CHARACTERS]
        if kept and error is not None and record.name.startswith(self._own) and record.levelno >= logging.ERROR:
            text += "\n" + self.formatter.formatException(kept)[-TRACEBACK_CHARACTERS:]
        return text

    def _write(self) -> None:
        while True:
            data = self._lines.get().encode(errors="backslashreplace")
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except OSError:
                self._left_out += 1  # a full disk, or a pipe whose reader has gone
            self._lines.task_done()


def log_to(handler: LineHandler) -> None:
    """Make a handler the only one of all loggers, whoever has configured others before."""
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in list(root.manager.loggerDict):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
