"""Waiting for something with a limit."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

LATE_S = 0.1
"""A timer that is so late says that the process was paused, or very busy."""
GRACE_S = 0.25
"""Seconds that are given then: the timer is due before what has come meanwhile is read."""


async def in_time(work: Coroutine[Any, Any, Result], seconds: float | None) -> Result:
    """What a coroutine returns, if it does within some seconds in which the process was awake.

    Other tasks have their turn before it is looked at, even if it is there at once.

    Raises:
        TimeoutError: if it does not; it is cancelled then.
    """
    task, loop = asyncio.ensure_future(work), asyncio.get_running_loop()
    began_s = loop.time()
    try:
        done, _ = await asyncio.wait((task,), timeout=seconds)
        if not done and seconds is not None and loop.time() - began_s > seconds + LATE_S:
            done, _ = await asyncio.wait((task,), timeout=GRACE_S)
        if done:
            return task.result()
        task.cancel()
        await asyncio.wait((task,))
        if task.cancelled():
            raise TimeoutError
        return task.result()
    finally:
        task.cancel()
