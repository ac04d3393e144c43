"""Real videos, small, whose frames show their numbers."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def numbered_frame(number: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A frame that shows its number in base 16: the left half the low digit, the right half the high one."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[:, : width // 2] = 8 + 15 * (number % 16)
    frame[:, width // 2 :] = 8 + 15 * (number // 16 % 16)
    return frame


def number_of(frame: np.ndarray) -> int:
    """The number that a decoded frame shows."""
    width = frame.shape[1]
    low = frame[8:-8, 8 : width // 2 - 8].mean()
    high = frame[8:-8, width // 2 + 8 : -8].mean()
    return round((low - 8) / 15) + 16 * round((high - 8) / 15)


def write_video(
    path: Path,
    *,
    frames: Sequence[np.ndarray] | None = None,
    num_frames: int = 24,
    rate: int | Fraction = 24,
    times: Sequence[float] | None = None,
    height: int = 64,
    width: int = 96,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    codec: str = "libx264",
    codec_options: dict[str, str] | None = None,
    container_format: str | None = None,
    shift_s: float = 0.0,
    change: Callable[[int, av.Packet], bool] = lambda number, packet: True,
) -> Path:
    """Encode a video. Without frames, frame i shows the number i; times (seconds) make the frame rate variable.

    `options` are the container's. All timestamps are shifted by `shift_s`; `change` may change the packets that were
    encoded, and says which are written.
    """
    if frames is None:
        frames = [numbered_frame(i, height, width) for i in range(len(times) if times else num_frames)]
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0

    def mux(packets: list[av.Packet]) -> None:
        nonlocal written
        for packet in packets:
            if shift_s and packet.pts is not None:
                packet.pts += round(shift_s / packet.time_base)
                packet.dts += round(shift_s / packet.time_base)
            if change(written, packet):
                container.mux(packet)
            written += 1

    with av.open(str(path), "w", format=container_format, options=options or {}) as container:
        if codec_options is None:
            codec_options = {"preset": "ultrafast"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=rate, options=codec_options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts = round(1000 * times[index]) if times else index
            frame.time_base = Fraction(1, 1000) if times else 1 / Fraction(rate)
            mux(stream.encode(frame))
        mux(stream.encode())
    return path
