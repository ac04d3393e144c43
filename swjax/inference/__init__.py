"""Speaking while watching: engines that answer about a video as it arrives."""

from swjax.inference.engine import Engine
from swjax.inference.events import FrameSeen, StreamEnded, StreamEvent, TokenSpoken
from swjax.inference.frames import Frame, read_frames
from swjax.inference.sampler import Sampling
from swjax.inference.session import StreamSession
from swjax.inference.settings import Mode, StreamSettings

__all__ = [
    "Engine",
    "Frame",
    "FrameSeen",
    "Mode",
    "Sampling",
    "StreamEnded",
    "StreamEvent",
    "StreamSession",
    "StreamSettings",
    "TokenSpoken",
    "read_frames",
]
