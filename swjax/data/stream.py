"""A stream of rows whose place is one number, whatever reads it ahead: threads, or any number of worker processes."""

from collections.abc import Callable
from typing import Any

import grain


class CountedStream(grain.IterDataset):
    """A stream that knows its place by counting.

    Grain's own iterators over worker processes remember the place of each worker, so a state fits that number of
    workers alone. The order of the rows does not depend on it, so their number is enough.
    """

    def __init__(self, start: Callable[[int], grain.IterDataset]):
        """Make a stream.

        Args:
            start: makes the stream of the rows from a given number on.
        """
        super().__init__()
        self._start = start

    def __iter__(self) -> "CountedIterator":
        return CountedIterator(self._start)


class CountedIterator(grain.DatasetIterator):
    """The iterator of a `CountedStream`; its state is {"next_row": number}."""

    def __init__(self, start: Callable[[int], grain.IterDataset]):
        super().__init__()
        self._start, self._next_row = start, 0
        self._rows: grain.DatasetIterator | None = None

    def __next__(self) -> Any:
        self._assert_not_closed()
        if self._rows is None:
            self._rows = iter(self._start(self._next_row))
        row = next(self._rows)
        self._next_row += 1
        return row

    def get_state(self) -> dict[str, int]:
        """The number of the next row."""
        return {"next_row": self._next_row}

    def set_state(self, state: dict[str, int]) -> None:
        """Go on at a row; reading starts when the first one is asked for."""
        self._stop()
        self._next_row = int(state["next_row"])

    def close(self) -> None:
        """Stop threads and workers."""
        self._stop()
        super().close()

    def _stop(self) -> None:
        if self._rows is not None:
            self._rows.close()
            self._rows = None
