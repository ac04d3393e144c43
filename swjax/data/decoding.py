"""The frames of a video file in the order in which they are shown, each with its time, from any time in the file.

Where a container's index leads a seek is not to be trusted: MPEG-TS is cut at any packet, and the first frames after a
key frame may refer to what lies before it. So a seek is right only when the first frame that comes out of it is on
screen at the wanted time or earlier; if it is not, the seek is repeated further back, and at last the file is read from
its beginning.
"""

import functools
import io
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

from swjax.data.archives import read_member
from swjax.data.example import ExampleError, VideoFile
from swjax.data.orientation import Orientation, read_orientation, turned
from swjax.storage import local_file

MAX_DECODED_FRAMES = 500_000
"""Frames that are decoded for one clip before it is taken for a trap: more than four hours at 30 fps."""

TIMESTAMP_TOLERANCE_S = 0.0011
"""A frame that comes this little after a time is still taken: Matroska and WebM round to milliseconds."""

# Pictures beside a film: covers, chapter pictures, stills.
_BESIDE = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image

# No file is longer; more units of a stream's time may be too many for 64 bits.
_LATEST_S = 2.0**31

# Containers in which every packet after a seek has its own time. MPEG program streams begin in the middle of a frame
# there, with times that are guessed; others are rare or short, and are read from their beginning.
_SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "mpegts")

_log = logging.getLogger(__name__)


class VideoError(ExampleError):
    """A video cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True)
class TimedFrame:
    """A decoded frame.

    Attributes:
        time_s: when it is shown, in seconds.
        frame: its pixels as the decoder left them.
        orientation: how they are turned to be shown.
        converter: makes RGB of the frames of its file.
    """

    time_s: float
    frame: av.VideoFrame
    orientation: Orientation
    converter: VideoReformatter

    def rgb(self) -> UInt8[np.ndarray, "height width 3"]:
        """Its pixels as they are shown. A converter made for one frame takes longer than a small frame's pixels do."""
        return turned(self.converter.reformat(self.frame, format="rgb24", threads=1).to_ndarray(), self.orientation)


@dataclass(frozen=True)
class Film:
    """An open video file.

    Attributes:
        begins_s: time of its first frame; the times of a file begin anywhere.
        ends_s: time at which the container says that its frames end, if it says so.
        frames: from the first one, or from one that is shown at the beginning of the part or earlier.
    """

    begins_s: float
    ends_s: float | None
    frames: Iterator[TimedFrame]


@contextmanager
def open_film(file: VideoFile, *, max_frame_pixels: int) -> Iterator[Film]:
    """Open a video file, or a part of one.

    Its beginning is the first frame that can be decoded. What a recording holds before its first key frame cannot be;
    it is left out, and a warning in the log says how much that is.

    Raises:
        VideoError: if it has no film or no frame, and later if a frame is damaged, too large, of another size or
            without a time.
        av.FFmpegError: if it cannot be read or decoded.
    """
    with ExitStack() as stack:

        def reopen() -> tuple[InputContainer, VideoStream]:
            return stack.enter_context(_open(file))

        container, stream = reopen()
        decode: Callable[..., Iterator[TimedFrame]] = functools.partial(_decode, file, max_frame_pixels)
        skipped: list[int] = []
        frames = decode(container, stream, skipped=skipped)
        first = next(frames, None)
        if first is None:  # no packet is marked as a key frame
            decode = functools.partial(decode, from_key_frame=False)
            skipped.clear()
            container, stream = reopen()
            frames = decode(container, stream)
            first = next(frames, None)
        if first is None:
            raise VideoError(f"{file} has a video stream without a single frame; fetch or encode it again")
        if skipped:
            whole = replace(file, start_s=0.0, end_s=None)
            _warn_of_missing(whole, len(skipped), first.time_s - _start_time(stream))
        begins_s, ends_s = first.time_s, _claimed_end(container, stream)
        frames = (
            _frames_from(begins_s + file.start_s, begins_s, container, stream, decode, reopen)
            if file.start_s
            else itertools.chain([first], frames)
        )
        yield Film(begins_s, ends_s, frames)


@contextmanager
def _open(file: VideoFile) -> Iterator[tuple[InputContainer, VideoStream]]:
    packed = None if file.member is None else read_member(file.path, file.member)

    def opened() -> InputContainer:
        return av.open(str(local_file(file.path)) if packed is None else io.BytesIO(packed), metadata_errors="ignore")

    with opened() as container:
        tracks = [stream for stream in container.streams.video if not stream.disposition & _BESIDE]
        if not tracks:
            only = "only a cover picture" if container.streams.video else "only sound or subtitles"
            raise VideoError(f"{file} has no video stream; give a file with moving pictures, not {only}")
        tracks = [track for track in tracks if track.codec_context is not None and track.time_base]
        if not tracks:
            raise VideoError(f"{file} is in a format that FFmpeg cannot decode; encode it again, as H.264 for example")
        stream = next((track for track in tracks if track.frames > 1), tracks[0])
        if stream.frames <= 1 and len(tracks) > 1:
            with opened() as other:
                stream = tracks[_first_with_two_packets(other, [track.index for track in tracks])]
        stream.codec_context.thread_count = 1
        yield container, stream


def _first_with_two_packets(container: InputContainer, tracks: list[int]) -> int:
    """Which of the tracks is a film and no still, where the container does not count their frames."""
    seen = set()
    for packet in _demux(container, *(container.streams[index] for index in tracks)):
        if packet.size and packet.stream.index in seen:
            return tracks.index(packet.stream.index)
        seen.add(packet.stream.index)
    return 0


def _time_base(stream: VideoStream) -> Fraction:
    assert stream.time_base is not None  # of a stream that is read
    return stream.time_base


def _start_time(stream: VideoStream) -> float:
    return 0.0 if stream.start_time is None else float(stream.start_time * _time_base(stream))


def _claimed_end(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration is not None:
        return _start_time(stream) + float(stream.duration * _time_base(stream))
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / av.time_base  # Matroska counts from zero, not from its first frame
    return None


@functools.lru_cache(maxsize=4096)  # a file is read once an epoch
def _warn_of_missing(file: VideoFile, pictures: int, seconds: float) -> None:
    _log.warning(
        "%s begins between key frames: its first %.2f s cannot be decoded and are left out (pictures before the first "
        "key frame: %d); its times count from the first frame that can be shown",
        file,
        seconds,
        pictures,
    )


def _frames_from(
    wanted_s: float,
    begins_s: float,
    container: InputContainer,
    stream: VideoStream,
    decode: Callable[..., Iterator[TimedFrame]],
    reopen: Callable[[], tuple[InputContainer, VideoStream]],
) -> Iterator[TimedFrame]:
    """Frames from one that is shown at this time or earlier, by the seek that goes back least."""
    back_s = 0.0
    wanted_s = min(wanted_s, _LATEST_S)
    while container.format.name in _SEEKABLE and wanted_s - back_s > begins_s:
        try:
            container.seek(math.floor((wanted_s - back_s) / _time_base(stream)), stream=stream, backward=True)
            frames = decode(container, stream)
            first = next(frames, None)
        except (av.FFmpegError, VideoError):
            first = None  # it is damaged there, or cannot be sought in
        if first is not None and first.time_s <= wanted_s + TIMESTAMP_TOLERANCE_S:
            return itertools.chain([first], frames)
        back_s = 2 * back_s or 1.0
    return decode(*reopen())


def _decode(
    file: VideoFile,
    max_frame_pixels: int,
    container: InputContainer,
    stream: VideoStream,
    *,
    from_key_frame: bool = True,
    skipped: list[int] | None = None,
) -> Iterator[TimedFrame]:
    """Decoded frames from here on, checked for size, damage and order.

    Args:
        file: in messages.
        max_frame_pixels: refuse larger frames.
        container: what is read.
        stream: of this container.
        from_key_frame: leave out what comes before the first key frame: some decoders make grey frames of it.
        skipped: takes the sizes of the packets that are left out.
    """
    shape: tuple[int, int] | None = None
    last_s, start_s = -math.inf, _start_time(stream)
    converter = VideoReformatter()
    packets = _packets(container, stream, from_key_frame, [] if skipped is None else skipped)
    decoded = (frame for packet in packets for frame in packet.decode())
    for number, (time_s, frame) in enumerate(_timed(decoded, file, has_pts=container.format.name != "avi")):
        if number == MAX_DECODED_FRAMES:
            raise VideoError(f"{file} has more than {MAX_DECODED_FRAMES} video frames; cut it into parts")
        if frame.width * frame.height > max_frame_pixels:
            raise VideoError(
                f"{file} has frames of {frame.width} x {frame.height} pixels, more than the limit of "
                f"{max_frame_pixels}; scale the video down"
            )
        orientation = read_orientation(frame)
        if orientation is None:
            raise VideoError(f"{file} is to be shown at an angle that is no quarter turn; encode it again upright")
        shown = (frame.height, frame.width) if orientation.transposed else (frame.width, frame.height)
        if shape not in (None, shown):
            raise VideoError(
                f"{file} changes its frame size from {shape} to {shown} at {time_s - start_s:.2f} s; "
                "encode it again at one size"
            )
        if time_s < last_s:
            raise VideoError(f"{file} has timestamps that run backwards at {last_s - start_s:.2f} s; encode it again")
        if frame.is_corrupt:
            raise VideoError(f"{file} has a damaged frame at {time_s - start_s:.2f} s; fetch or encode it again")
        shape, last_s = shown, time_s
        yield TimedFrame(time_s, frame, orientation, converter)


def _packets(
    container: InputContainer, stream: VideoStream, from_key_frame: bool, skipped: list[int]
) -> Iterator[av.Packet]:
    begun = not from_key_frame
    for packet in _demux(container, stream):
        begun = begun or packet.is_keyframe
        if begun:
            yield packet
        elif packet.size:
            skipped.append(packet.size)


def _demux(container: InputContainer, *streams: Stream) -> Iterator[av.Packet]:
    # When the file ends, PyAV may take a stream that turned up after it was opened for one of ours and not find it; by
    # then ours are at their end.
    with suppress(IndexError):
        yield from container.demux(*streams)


def _timed(frames: Iterator[av.VideoFrame], file: VideoFile, *, has_pts: bool) -> Iterator[tuple[float, av.VideoFrame]]:
    """Frames with the best time that is known of each, as FFmpeg's `best_effort_timestamp` has it.

    That is the presentation time, as long as presentation times run backwards no more often than decoding times do; a
    decoder gives its frames out in the order of presentation, so the decoding time of the packet that brought a frame
    out is the next best. AVI stores decoding times alone. A frame with neither follows the one before it.
    """
    last_pts = last_dts = -math.inf
    faulty_pts = faulty_dts = 0
    last_s = step_s = None
    for frame in frames:
        pts, dts = (frame.pts if has_pts else None), frame.dts
        if pts is not None:
            faulty_pts += pts < last_pts
            last_pts = pts
        if dts is not None:
            faulty_dts += dts < last_dts
            last_dts = dts
        best = pts if pts is not None and (dts is None or faulty_pts <= faulty_dts) else dts
        if best is not None:
            base = frame.time_base
            time_s = best * base.numerator / base.denominator
            step_s = step_s if last_s is None else time_s - last_s
        elif last_s is not None:
            time_s = last_s + (float(frame.duration * frame.time_base) if frame.duration else step_s or 0.0)
        else:
            raise VideoError(f"{file} has frames without timestamps; put it into a container such as MP4 (remux it)")
        last_s = time_s
        yield time_s, frame
