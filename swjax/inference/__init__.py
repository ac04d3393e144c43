"""Speaking while watching: engines that answer about a video as it arrives."""

from swjax.data.example import VIDEO_TAG
from swjax.inference.batch_engine import BatchEngine
from swjax.inference.events import FrameSeen, QuestionSeen, StreamEnded, StreamEvent, TokenSpoken
from swjax.inference.feed import Request, run_streams
from swjax.inference.frames import Frame, make_frame, make_frames, read_frames, read_live_frames
from swjax.inference.sampler import Sampling
from swjax.inference.session import StreamSession
from swjax.inference.settings import Mode, StreamSettings
from swjax.inference.stream import Stream
from swjax.inference.weights import Model, Weights

__all__ = [
    "VIDEO_TAG",
    "BatchEngine",
    "Frame",
    "FrameSeen",
    "Mode",
    "Model",
    "QuestionSeen",
    "Request",
    "Sampling",
    "Stream",
    "StreamEnded",
    "StreamEvent",
    "StreamSession",
    "StreamSettings",
    "TokenSpoken",
    "Weights",
    "make_frame",
    "make_frames",
    "read_frames",
    "read_live_frames",
    "run_streams",
]
