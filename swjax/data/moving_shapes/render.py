"""Renders a scene of Moving Shapes into an H.264 MP4 file, the same bytes every time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

from swjax.atomic import replacing
from swjax.data.moving_shapes.drawing import draw_frames
from swjax.data.moving_shapes.scene import Scene
from swjax.storage import AnyPath, is_remote

FPS = 8
SIZE = 112  # pixels, both ways
# A key frame a second and no B-frames, so that decoding is quick; one thread, so the bytes are always the same.
_ENCODER = {"preset": "ultrafast", "tune": "fastdecode", "crf": "20", "g": str(FPS), "bf": "0", "threads": "1"}


def render(scene: Scene, path: AnyPath, *, size: int = SIZE) -> None:
    """Write the video of a scene. The file appears under its name only when it is whole.

    Args:
        scene: what is drawn, at `FPS` frames a second.
        path: of the MP4 file, on disk or in a bucket.
        size: height and width in pixels, even.
    """
    write_video(draw_frames(scene, size=size, fps=FPS), path)


def write_video(frames: Iterable[UInt8[np.ndarray, "H W 3"]], path: AnyPath) -> None:
    """Write RGB frames, at least one, as a file that appears under its name only when it is whole."""
    with replacing(path) as partial:
        encode(frames, partial, fps=FPS)


def encode(frames: Iterable[UInt8[np.ndarray, "H W 3"]], path: Path, *, fps: int) -> None:
    """Write RGB frames, at least one, as H.264 (yuv420p) in MP4. Height and width must be even.

    Args:
        frames: of one size.
        path: of the file, on disk; written over.
        fps: frames a second.
    """
    pictures = iter(frames)
    first = next(pictures)
    with av.open(str(path), mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=_ENCODER)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, fps)
        for picture in itertools.chain([first], pictures):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def is_whole(path: AnyPath, num_frames: int) -> bool:
    """Whether a file is there and is a video of so many frames, to judge by all that its index finds, written last."""
    if is_remote(path):  # an object appears with its last byte
        return path.exists()
    try:
        with av.open(str(path)) as container:
            video = container.streams.video
            return bool(video) and sum(packet.size > 0 for packet in container.demux(video[0])) == num_frames
    except (FileNotFoundError, EOFError, av.error.InvalidDataError):
        return False
