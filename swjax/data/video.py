"""Videos as frames at a steady rate, taken by the timestamps in the file.

A sample at time t is the last video frame shown at or before t, so a variable frame rate, 29.97 fps or a frame that
stays on screen for seconds all come out right. Only the frames taken are converted to RGB, and decoding uses one
thread, because pipelines decode several videos at once.

A part of a long file is read from the key frame before it, and no further than its end; it shows what the whole file
shows at the same times.

Quarter turns and mirroring that the file asks for are applied. Pixels that are not square are not looked at.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import av
import numpy as np
from jaxtyping import UInt8

from swjax.data.clips import decode_clip
from swjax.data.decoding import TIMESTAMP_TOLERANCE_S, Film, TimedFrame, VideoError, open_film
from swjax.data.example import EncodedClip, Video, VideoFile
from swjax.storage import as_path, local_file, refused_scheme
from swjax.streaming import Geometry, StreamSpec

DEFAULT_FPS = StreamSpec.fps
DEFAULT_MAX_FRAMES = 768
MAX_FRAME_PIXELS = 7680 * 4320
# A file may promise a little more than it holds (edit lists, a last frame without a duration).
_MISSING_SHARE = 0.1
_MISSING_S = 0.5


def decode_video(
    video: str | Video,
    *,
    fps: float = DEFAULT_FPS,
    temporal_patch_size: int = Geometry.temporal_patch_size,
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

    Args:
        video: a file, a part of one, or a clip of a record.
        fps: samples a second.
        max_frame_pixels: refuse a video whose frames are larger (height times width); clips are not checked.

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
    if isinstance(video, str) and "://" in video and refused_scheme(video):
        raise VideoError(f"{video} is a URL, and no bucket's; download it and give the file")
    file = video if isinstance(video, VideoFile) else VideoFile(as_path(video))
    try:
        is_file = local_file(file.path).is_file()
    except FileNotFoundError:
        is_file = False
    if not is_file:
        raise VideoError(f"there is no video file {file.path}; check the path")
    with _decoder_errors(file), open_film(file, max_frame_pixels=max_frame_pixels) as film:
        yield from _sample(film, fps, file)


@contextmanager
def _decoder_errors(path: VideoFile) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        raise VideoError(
            f"{path} cannot be decoded ({error.strerror}); the file is damaged, cut off or not a video: fetch or "
            "encode it again"
        ) from error


def _sample(film: Film, fps: float, path: VideoFile) -> Iterator[tuple[float, UInt8[np.ndarray, "height width 3"]]]:
    """Take the frame on screen at 0, 1/fps, 2/fps ...; a frame is on screen until the next one comes."""
    length_s = math.inf if path.end_s is None else path.end_s - path.start_s
    if not length_s > 0:
        raise VideoError(f"{path} ends before it begins; mend start and end")
    beginning = film.begins_s + path.start_s
    taken = 0
    shown: TimedFrame | None = None
    since = interval = 0.0
    for timed in film.frames:
        time = timed.time_s - beginning
        if shown is not None:
            due = _samples_before(min(time, length_s), fps)
            yield from _on_screen(shown, range(taken, due), fps)
            taken, interval = due, time - since
        if time >= length_s and shown is not None:
            return
        shown, since = timed, time
    if shown is None:
        raise VideoError(f"{path} has no frame that late; mend start and end")
    frame = shown.frame
    end = since + (float(frame.duration * frame.time_base) if frame.duration and frame.time_base else interval)
    promised = min(length_s, math.inf if film.ends_s is None else film.ends_s - beginning)
    if math.isfinite(promised) and promised - end > max(_MISSING_S, _MISSING_SHARE * promised):
        raise VideoError(
            f"{path} breaks off after {max(0.0, end):.2f} s of the {promised:.2f} s that it promises; fetch it "
            "again in full"
        )
    if path.end_s is not None and length_s - end > max(_MISSING_S, _MISSING_SHARE * length_s):
        raise VideoError(f"{path} is to end at {path.end_s:g} s, but the file ends at {path.start_s + end:.2f} s")
    if path.start_s and end <= 0:
        raise VideoError(
            f"{path} has no frame that late, the file ends at {path.start_s + end:.2f} s; mend start and end"
        )
    yield from _on_screen(shown, range(taken, _samples_before(min(end, length_s), fps)), fps)


def _samples_before(time_s: float, fps: float) -> int:
    """How many of the times 0, 1/fps, 2/fps ... lie before this one."""
    return max(0, math.ceil((time_s - TIMESTAMP_TOLERANCE_S) * fps))


def _on_screen(
    shown: TimedFrame, samples: range, fps: float
) -> Iterator[tuple[float, UInt8[np.ndarray, "height width 3"]]]:
    if samples:
        rgb = shown.rgb()
        for number in samples:
            yield number / fps, rgb
