import contextlib
import logging
import os
import re
import time

import pytest

from swjax.serving.logs import BURST, LINE_CHARACTERS, LineHandler, log_to


@pytest.fixture
def pipe():
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


def record(text: str, name: str = "aiohttp.server", level: int = logging.WARNING, error: Exception | None = None):
    info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord(name, level, __file__, 1, text, (), info)


def written(read: int, handler: LineHandler) -> str:
    handler.drain(5)
    return os.read(read, 1 << 20).decode()


def raised(text: str) -> Exception:
    try:
        raise RuntimeError(text)
    except RuntimeError as error:
        return error


def test_an_event_is_one_line_with_its_time(pipe):
    handler = LineHandler(pipe[1])
    handler.handle(
        record("a stranger\nsays\rthis \udcff", error=raised("two\nlines" + 1000 * "x"), level=logging.ERROR)
    )
    text = written(pipe[0], handler)
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ERROR aiohttp.server: a stranger says this", text)
    assert "RuntimeError: two lines" in text
    assert text.count("\n") == 1
    assert len(text) < LINE_CHARACTERS + 20


def test_a_fault_of_the_server_has_its_traceback(pipe):
    handler = LineHandler(pipe[1])
    handler.handle(record("a stream has failed", "swjax.serving.engine_loop", logging.ERROR, raised("why")))
    text = written(pipe[0], handler)
    assert "in raised" in text
    assert "RuntimeError: why" in text


def test_a_flood_is_counted_and_not_written(pipe, monkeypatch):
    monkeypatch.setattr("swjax.serving.logs.LINES_PER_S", 0.0)  # however long it takes here
    handler = LineHandler(pipe[1])
    for _ in range(20_000):
        handler.handle(record("again"))
    text = written(pipe[0], handler)
    assert text.count("\n") == BURST
    handler._allowance = 1.0
    handler.handle(record("later"))
    assert f"later ({20_000 - BURST} more lines were left out)\n" in written(pipe[0], handler)


def test_a_pipe_that_nobody_reads_holds_nobody_up(pipe):
    handler = LineHandler(pipe[1])
    began_s = time.monotonic()
    for _ in range(1000):
        handler._allowance = float(BURST)
        handler.handle(record("x" * 300))
    handler.drain(0.05)
    assert time.monotonic() - began_s < 2
    # The thread writes without the handler's lock, which the end of the process takes.
    assert handler.lock is not None
    assert handler.lock.acquire(timeout=1)
    handler.lock.release()
    os.set_blocking(pipe[0], False)  # the last line may be read before it counts as written
    while handler._lines.unfinished_tasks:
        with contextlib.suppress(BlockingIOError):
            os.read(pipe[0], 1 << 16)
        time.sleep(0.001)


def test_it_takes_the_place_of_what_others_have_configured(pipe):
    root, other = logging.getLogger(), logging.getLogger("swjax_test_other")
    kept, level = root.handlers[:], root.level
    other.addHandler(logging.StreamHandler())
    other.propagate = False
    try:
        log_to(handler := LineHandler(pipe[1]))
        other.warning("heard")
        assert "heard" in written(pipe[0], handler)
        assert root.handlers == [handler]
    finally:
        root.handlers[:] = kept
        root.setLevel(level)
