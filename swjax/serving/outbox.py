"""What waits to be sent to one client: put there by any thread without waiting, taken by the event loop."""

import asyncio
import threading

from swjax.serving.protocol import ServerMessage


class Outbox:
    """A bounded queue of messages, of which one may be the last.

    Args:
        loop: the event loop that takes them.
        limit: messages that it holds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int):
        self._loop, self._limit = loop, limit
        self._lock = threading.Lock()
        self._messages: list[ServerMessage] = []
        self._ended = False
        self._wake = asyncio.Event()

    def put(self, message: ServerMessage) -> bool:
        """Add a message; false if there is no room. After the last message it is dropped."""
        with self._lock:
            if self._ended:
                return True
            if len(self._messages) >= self._limit:
                return False
            self._messages.append(message)
            is_first = len(self._messages) == 1
        if is_first:
            self._loop.call_soon_threadsafe(self._wake.set)
        return True

    def end(self, message: ServerMessage) -> bool:
        """Add the last message, for which there is always room; false if there was one."""
        with self._lock:
            if self._ended:
                return False
            self._ended = True
            self._messages.append(message)
        self._loop.call_soon_threadsafe(self._wake.set)
        return True

    async def take(self) -> tuple[list[ServerMessage], bool]:
        """Wait for messages; returns all, and whether the last is among them."""
        await self._wake.wait()
        with self._lock:
            self._wake.clear()
            messages, self._messages = self._messages, []
            return messages, self._ended
