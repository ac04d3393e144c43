"""Waiting for something with a limit."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

GRACE_S = 0.25
"""When the process has been paused, every timer is due before what has come meanwhile is read; so none is the last
word."""


async def in_time(work: Coroutine[Any, Any, Result], seconds: float | None) -> Result:
    """What a coroutine returns, if it does within some seconds of which the process was awake.

    Other tasks have their turn before it is looked at, even if it is there at once.

    Raises:
        TimeoutError: if it does not; it is cancelled then.
    """
    task = asyncio.ensure_future(work)
    try:
        for wait_s in (seconds, GRACE_S):
            done, _ = await asyncio.wait((task,), timeout=wait_s)
            if done:
                return task.result()
        task.cancel()
        await asyncio.wait((task,))
        if task.cancelled():
            raise TimeoutError
        return task.result()
    finally:
        task.cancel()
