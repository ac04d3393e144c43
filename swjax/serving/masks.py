"""Frames of clients must be masked (RFC 6455, section 5.1), and be few at a time; the parser does not look."""

from collections.abc import Callable
from typing import Any

MAX_FRAMES = 512
"""Frames in the bytes of one read, 256 KiB at most; thousands of empty ones would hold the event loop up."""

_MORE_SIZE = {126: 2, 127: 8}


class FrameGuard:
    """Stands before a WebSocket parser and leaves at the first frame without a mask, or when frames come as a flood.

    Args:
        parser: the parser.
        leave: called then; nothing is handed on from there.
    """

    def __init__(self, parser: Any, leave: Callable[[], None]):
        self._parser, self._leave = parser, leave
        self._head, self._skip, self._left = bytearray(), 0, False

    def feed_data(self, data: bytes) -> Any:
        """Look at the heads of the frames in some bytes, and hand them on."""
        if self._left or not self._is_fair(data):
            self._left = True
            self._leave()
            return True, b""
        return self._parser.feed_data(data)

    def feed_eof(self) -> Any:
        """Hand on that nothing follows."""
        return self._parser.feed_eof()

    def _is_fair(self, data: bytes) -> bool:
        at, frames, head = 0, 0, self._head
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip, at = self._skip - step, at + step
                continue
            head.append(data[at])
            at += 1
            if len(head) < 2:
                continue
            if not head[1] & 0x80:
                return False
            short = head[1] & 0x7F
            if len(head) < 2 + _MORE_SIZE.get(short, 0):
                continue
            self._skip = 4 + (int.from_bytes(head[2:], "big") if short in _MORE_SIZE else short)
            head.clear()
            frames += 1
            if frames > MAX_FRAMES:
                return False
        return True
