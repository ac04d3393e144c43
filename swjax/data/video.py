"""Videos as frames at a steady rate, taken by the timestamps in the file.

A sample at time t is the last video frame shown at or before t, so a variable frame rate, 29.97 fps or a frame that
stays on screen for seconds all come out right. Only the frames taken are converted to RGB, and decoding uses one
thread, because pipelines decode several videos at once.

A part of a long file is read from the key frame before it, and no further than its end.

Rotation in the file is applied in steps of 90 degrees. Mirroring and pixels that are not square are not looked at.
"""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

from swjax.data.archives import read_member
from swjax.data.clips import decode_clip
from swjax.data.example import EncodedClip, ExampleError, Video, VideoFile

DEFAULT_FPS = 2.0
DEFAULT_MAX_FRAMES = 768
MAX_FRAME_PIXELS = 7680 * 4320
MAX_DECODED_FRAMES = 500_000
"""Frames that are decoded for one clip before it is taken for a trap: more than four hours at 30 fps."""

# A frame that comes this little after a sample's time is still taken: Matroska and WebM round to milliseconds.
_TIMESTAMP_TOLERANCE_S = 0.0011
# A file may promise a little more than it holds (edit lists, a last frame without a duration).
_MISSING_SHARE = 0.1
_MISSING_S = 0.5


class VideoError(ExampleError):
    """A video cannot be used; the message names the file and says what to do."""


def decode_video(
    video: str | Video,
    *,
    fps: float = DEFAULT_FPS,
    temporal_patch_size: int = 2,
    max_frames: int = DEFAULT_MAX_FRAMES,
    max_frame_pixels: int = MAX_FRAME_PIXELS,
) -> UInt8[np.ndarray, "frames height width 3"]:
    """Decode a whole video, or the part of it that is meant, at a steady rate.

    Args:
        video: a file, a part of one, or a clip of a record.
        fps: samples a second, taken at times 0, 1/fps, 2/fps ... after the first video frame, or the part's beginning.
        temporal_patch_size: samples to a temporal patch; a last patch that is not full is dropped.
        max_frames: refuse a video that has more samples.
        max_frame_pixels: refuse a video whose frames are larger.

    Returns:
        uint8[frames, height, width, 3], RGB, a whole number of temporal patches.

    Raises:
        VideoError: if the file is missing, is not a video, breaks off, is damaged, is too long or too large, or is
            shorter than one temporal patch.
    """
    frames: list[UInt8[np.ndarray, "height width 3"]] = []
    for _, frame in iter_frames(video, fps, max_frame_pixels=max_frame_pixels):
        if len(frames) == max_frames:
            raise VideoError(
                f"{video} has more than {max_frames} frames at {fps:g} fps ({max_frames / fps:g} s); cut the video or "
                "raise the limit on frames"
            )
        frames.append(frame)
    usable = len(frames) - len(frames) % temporal_patch_size
    if usable == 0:
        raise VideoError(
            f"{video} is too short: {len(frames)} frame(s) at {fps:g} fps, and one step of the model needs "
            f"{temporal_patch_size} ({temporal_patch_size / fps:g} s); leave the video out or sample faster"
        )
    return np.stack(frames[:usable])


def iter_frames(
    video: str | Video, fps: float = DEFAULT_FPS, *, max_frame_pixels: int = MAX_FRAME_PIXELS
) -> Iterator[tuple[float, UInt8[np.ndarray, "height width 3"]]]:
    """Yield (time in seconds, RGB frame) at a steady rate, decoding as it goes.

    Times count from the first video frame, or from the beginning of the part. The last sample lies before the end of
    the last video frame. A frame that stays on screen over several samples is yielded several times as the same array.

    Raises:
        VideoError: before the first frame if the file cannot be used at all, later when it turns out to be damaged or
            to break off.
        ExampleError: if a clip of a record is damaged or has another rate.
        ValueError: if fps is not above 0.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be above 0, got {fps}")
    if isinstance(video, EncodedClip):
        yield from ((number / fps, frame) for number, frame in enumerate(decode_clip(video, fps=fps)))
        return
    file = video if isinstance(video, VideoFile) else VideoFile(Path(video))
    if not file.path.is_file():
        raise VideoError(f"there is no video file {file.path}; check the path")
    opened = str(file.path) if file.member is None else io.BytesIO(read_member(file.path, file.member))
    with _decoder_errors(file), av.open(opened, metadata_errors="ignore") as container:
        if not container.streams.video:
            raise VideoError(f"{file} has no video stream; give a file with pictures, not only sound or subtitles")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        claimed_s = _claimed_duration(container, stream)
        yield from _sample(_timed_frames(file, container, stream, max_frame_pixels), fps, file, claimed_s)


@contextmanager
def _decoder_errors(path: VideoFile) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        raise VideoError(
            f"{path} cannot be decoded ({error.strerror}); the file is damaged, cut off or not a video: fetch or "
            "encode it again"
        ) from error


def _claimed_duration(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> float | None:
    """Seconds of pictures that the container promises, if it says so."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        # Matroska counts from zero, not from its first frame.
        start = float(stream.start_time * stream.time_base) if stream.start_time is not None else 0.0
        return container.duration / av.time_base - start
    return None


def _timed_frames(
    path: VideoFile, container: av.container.InputContainer, stream: av.video.stream.VideoStream, max_frame_pixels: int
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Decoded frames with seconds since the beginning, checked for size, damage and order.

    The beginning is the first frame, or that of the part; what is still on screen then comes with a time below zero.
    """
    beginning = None
    if path.start_s:
        first_pts = stream.start_time or 0
        beginning = float(first_pts * stream.time_base) + path.start_s
        container.seek(first_pts + math.floor(path.start_s / stream.time_base), stream=stream, backward=True)
    last_time, size = -math.inf, None
    for number, frame in enumerate(container.decode(stream)):
        if number == MAX_DECODED_FRAMES:
            raise VideoError(f"{path} has more than {MAX_DECODED_FRAMES} video frames; cut it into parts")
        if frame.time is None:
            raise VideoError(f"{path} has frames without timestamps; put it into a container such as MP4 (remux it)")
        beginning = frame.time if beginning is None else beginning
        time = frame.time - beginning
        if size is None:
            size = (frame.width, frame.height)
            if frame.width * frame.height > max_frame_pixels:
                raise VideoError(
                    f"{path} has frames of {frame.width} x {frame.height} pixels, more than the limit of "
                    f"{max_frame_pixels}; scale the video down"
                )
        if (frame.width, frame.height) != size:
            raise VideoError(
                f"{path} changes its frame size from {size} to {(frame.width, frame.height)} at {time:.2f} s; encode "
                "it again at one size"
            )
        if time < last_time:
            raise VideoError(f"{path} has timestamps that run backwards at {last_time:.2f} s; encode it again")
        if frame.is_corrupt:
            raise VideoError(f"{path} has a damaged frame at {time:.2f} s; fetch or encode it again")
        last_time = time
        yield time, frame


def _sample(
    frames: Iterator[tuple[float, av.VideoFrame]], fps: float, path: VideoFile, claimed_s: float | None
) -> Iterator[tuple[float, UInt8[np.ndarray, "height width 3"]]]:
    """Take the frame on screen at 0, 1/fps, 2/fps ...; a frame is on screen until the next one comes."""
    length_s = math.inf if path.end_s is None else path.end_s - path.start_s
    if not length_s > 0:
        raise VideoError(f"{path} ends before it begins; mend start and end")
    taken = 0
    shown: av.VideoFrame | None = None
    since = interval = 0.0
    for time, frame in frames:
        if shown is not None:
            due = _samples_before(min(time, length_s), fps)
            yield from _on_screen(shown, range(taken, due), fps, path)
            taken, interval = due, time - since
        if time >= length_s and shown is not None:
            return
        shown, since = frame, time
    if shown is None:
        if path.start_s:
            raise VideoError(f"{path} has no frame that late; mend start and end")
        raise VideoError(f"{path} has a video stream without a single frame; fetch or encode it again")
    end = since + (float(shown.duration * shown.time_base) if shown.duration and shown.time_base else interval)
    promised = min(length_s, math.inf if claimed_s is None else claimed_s - path.start_s)
    if math.isfinite(promised) and promised - end > max(_MISSING_S, _MISSING_SHARE * promised):
        raise VideoError(
            f"{path} breaks off after {max(0.0, end):.2f} s of the {promised:.2f} s that it promises; fetch it "
            "again in full"
        )
    if path.end_s is not None and length_s - end > max(_MISSING_S, _MISSING_SHARE * length_s):
        raise VideoError(f"{path} is to end at {path.end_s:g} s, but the file ends at {path.start_s + end:.2f} s")
    yield from _on_screen(shown, range(taken, _samples_before(min(end, length_s), fps)), fps, path)


def _samples_before(time_s: float, fps: float) -> int:
    """How many of the times 0, 1/fps, 2/fps ... lie before this one."""
    return max(0, math.ceil((time_s - _TIMESTAMP_TOLERANCE_S) * fps))


def _on_screen(
    frame: av.VideoFrame, samples: range, fps: float, path: VideoFile
) -> Iterator[tuple[float, UInt8[np.ndarray, "height width 3"]]]:
    if samples:
        rgb = _to_rgb(frame, path)
        for number in samples:
            yield number / fps, rgb


def _to_rgb(frame: av.VideoFrame, path: VideoFile) -> UInt8[np.ndarray, "height width 3"]:
    rgb = frame.to_ndarray(format="rgb24")
    if frame.rotation == 0:
        return rgb
    if frame.rotation % 90:
        raise VideoError(f"{path} is to be shown rotated by {frame.rotation} degrees; encode it again upright")
    return np.ascontiguousarray(np.rot90(rgb, frame.rotation // 90))
