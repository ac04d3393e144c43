"""Speaking while watching: engines that answer about a video as it arrives."""

from swjax.inference.engine import Engine
from swjax.inference.events import FrameSeen, StreamEnded, StreamEvent, TokenSpoken
from swjax.inference.frames import Frame, read_frames
from swjax.inference.session import StreamSession, StreamSettings

__all__ = [
    "Engine",
    "Frame",
    "FrameSeen",
    "StreamEnded",
    "StreamEvent",
    "StreamSession",
    "StreamSettings",
    "TokenSpoken",
    "read_frames",
]
