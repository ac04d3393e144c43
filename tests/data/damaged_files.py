"""Files of every kind that a large corpus has and nothing can be learned from, and odd ones that are sound."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image
from video_files import numbered_frame, write_video


def _half(path: Path, **video) -> Path:
    """A file whose index promises more than its data hold."""
    write_video(path, num_frames=96, options={"movflags": "faststart"}, **video)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def _bytes(content: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return write


def _head_only(path: Path) -> Path:
    write_video(path, num_frames=96)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def _sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _picture(path: Path) -> Path:
    Image.fromarray(numbered_frame(3)).save(path, "PNG")
    return path


def _motion_jpeg(path: Path, height: int, width: int) -> Path:
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=2)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuvj420p"
        for index in range(8):
            frame = av.VideoFrame(width, height, "yuvj420p")
            frame.pts, frame.time_base = index, Fraction(1, 2)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _scrambled(path: Path) -> Path:
    """A whole index, and data overwritten in the middle."""
    write_video(path, num_frames=96, options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    data[len(data) // 3 :] = bytes(len(data) - len(data) // 3)
    path.write_bytes(bytes(data))
    return path


DAMAGED: dict[str, Callable[[Path], Path]] = {
    "empty": _bytes(b""),
    "noise": _bytes(np.random.default_rng(0).bytes(5000)),
    "web_page": _bytes(b"<html><body>404 not found</body></html>" * 50),
    "head_only": _head_only,
    "cut_short": _half,
    "scrambled": _scrambled,
    "sound_only": _sound_only,
    "picture": _picture,
    "one_frame": lambda path: write_video(path, num_frames=1),
    "half_a_step": lambda path: write_video(path, num_frames=11),
    "bomb_of_pixels": lambda path: _motion_jpeg(path, 8192, 8192),
    "ribbon": lambda path: _motion_jpeg(path, 16, 3600),
    "folder": lambda path: path.mkdir() or path,
}
"""Kind -> what writes such a file."""

SOUND: dict[str, Callable[[Path], Path]] = {
    "plain": lambda path: write_video(path, num_frames=96),
    "variable_rate": lambda path: write_video(path, times=[0, 0.1, 0.2, 0.9, 1.0, 1.45, 2.7, 2.8, 3.9]),
    "rotated": lambda path: write_video(path, num_frames=96, rotation=90),
    "odd_size": lambda path: _motion_jpeg(path, 101, 77),
    "uhd": lambda path: _motion_jpeg(path, 2160, 3840),
    "slow": lambda path: write_video(path, num_frames=4, rate=1),
}
"""Odd files that are good all the same; 4 s each, or nearly."""
