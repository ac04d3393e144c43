"""Traces of some steps, for TensorBoard's profiler or Perfetto."""

import contextlib
from collections.abc import Callable, Iterator

import jax

from swjax.storage import AnyPath, writing_folder

PROFILE = "profile"


def parse_steps(text: str) -> tuple[int, int] | None:
    """The first and last step of `config.profile.steps`, such as "10:13"; None of "".

    Raises:
        ValueError: it is no such range.
    """
    if not text:
        return None
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ValueError(f"{text!r} is no range of steps; give the first and the last, such as 10:13")
    return int(first), int(last)


@contextlib.contextmanager
def trace_steps(run_dir: AnyPath, steps: str) -> Iterator[tuple[Callable[[int], None], Callable[[int, object], None]]]:
    """Traces what the devices and the host do from the first to the last of some steps.

    Args:
        run_dir: the run folder, which receives the trace as `profile/`.
        steps: as for `parse_steps`.

    Yields:
        Two functions to call at every step: before it with its number, and after it with its number and what it
        computes, which is waited for before the trace is ended.
    """
    wanted = parse_steps(steps)
    running = False
    folder = contextlib.ExitStack()

    def before(step: int) -> None:
        nonlocal running
        # A run that is resumed in the middle of the range traces the rest.
        if wanted is not None and not running and wanted[0] <= step <= wanted[1]:
            jax.profiler.start_trace(folder.enter_context(writing_folder(run_dir / PROFILE)))
            running = True

    def after(step: int, result: object) -> None:
        nonlocal running
        if wanted is not None and running and step >= wanted[1]:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            running = False
            folder.close()

    try:
        yield before, after
    finally:
        if running:
            jax.profiler.stop_trace()
        folder.close()
