"""Watching over a run: where it stands still, when its loss jumps, and when it waits for its input."""

import contextlib
import faulthandler
import math
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TextIO

_SOON = 20
"""Steps before the first warning, and between two of a kind."""


@contextlib.contextmanager
def watchdog(minutes: float, *, file: TextIO | None = None) -> Iterator[Callable[[], None]]:
    """Writes the stacks of all threads when no step has ended for some minutes; once for each standstill.

    The run is left alone: what it waits for may come. Of several processes, each writes its own.

    Args:
        minutes: how long; 0 watches nothing.
        file: with a descriptor; the standard error by default.

    Yields:
        A function to call when a step has ended.
    """
    if not minutes:
        yield lambda: None
        return
    out, ended, over = file or sys.stderr, threading.Event(), threading.Event()

    def wait() -> None:
        while not over.is_set():
            if ended.wait(minutes * 60):
                ended.clear()
                continue
            out.write(f"no step has ended for {minutes:g} min; the stacks of all threads:\n")
            out.flush()
            faulthandler.dump_traceback(out, all_threads=True)
            ended.wait()

    thread = threading.Thread(target=wait, name="watchdog", daemon=True)
    thread.start()
    try:
        yield ended.set
    finally:
        over.set()
        ended.set()
        thread.join()


class LossWatch:
    """Says when a loss is far above those before it."""

    DEVIATIONS = 6.0
    """How many standard deviations above the mean are far."""
    MEMORY = 0.98
    """Decay of the running mean and variance."""

    def __init__(self) -> None:
        """Begins with no losses."""
        self._mean = self._variance = 0.0
        self._count, self._said = 0, -_SOON

    def see(self, loss: float) -> str:
        """Takes the loss of a step, in order; returns a warning, '' for none."""
        if not math.isfinite(loss):
            return ""  # counted as a bad step
        deviation = math.sqrt(self._variance)
        far = self._mean + self.DEVIATIONS * deviation + 0.1 * abs(self._mean)
        spikes = self._count >= _SOON and loss > far and self._count - self._said >= _SOON
        said = ""
        if spikes:
            self._said = self._count
            said = f"the loss jumped to {loss:.4f}, from {self._mean:.4f} on average (deviation {deviation:.4f})"
        change = loss - self._mean
        # The first losses weigh alike.
        weight = max(1 - self.MEMORY, 1 / (self._count + 1))
        self._mean += weight * change
        self._variance = (1 - weight) * (self._variance + weight * change * change)
        self._count += 1
        return said


class InputWatch:
    """Says when steps wait for their batches for much of the time."""

    def __init__(self, *, share: float = 0.3, steps: int = 50) -> None:
        """Begins with no steps.

        Args:
            share: of the time that is much.
            steps: over how many it is taken.
        """
        self._share, self._steps = share, steps
        self._times: deque[tuple[float, float]] = deque(maxlen=steps)
        self._silent = 0

    def see(self, waited: float, whole: float) -> str:
        """Takes the seconds that a step waited and took; returns a warning, '' for none, at most one in 20 windows.

        Args:
            waited: for the batch.
            whole: the step with its wait.
        """
        self._times.append((waited, whole))
        self._silent -= 1
        if len(self._times) < self._steps or self._silent > 0:
            return ""
        waits, wholes = (sum(times) for times in zip(*self._times, strict=True))
        if waits <= self._share * wholes:
            return ""
        self._silent = 20 * self._steps
        return (
            f"the last {self._steps} steps waited for their data for {waits / wholes:.0%} of the time; raise "
            "config.data.workers or config.data.cache_mb, or make records (swjax prepare)"
        )
