"""Frames of a video as a session takes them: one temporal patch of the model, in the order of arrival."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8

from swjax.data.example import EncodedClip, Picture, Video
from swjax.data.patches import video_to_patches
from swjax.inference.numbers import real, shown, whole
from swjax.models.config import VisionConfig
from swjax.streaming import DEFAULT_GEOMETRY, Geometry

MOST_WAITING = 4
"""Frames of a live source that wait to be taken in; of more, the oldest are dropped."""

MAX_SIDE = 2**15
"""The most patches on a side of a frame, so that their number is within int32."""


@dataclass(frozen=True)
class Frame:
    """One frame (temporal grid step).

    Attributes:
        patches: uint8[h * w, C] in the processor's order.
        grid_hw: patch rows and columns.
        video_s: time in the video, in seconds, of the latest of its pictures.
        geometry: sizes of the patches that it was cut up into.
    """

    patches: UInt8[np.ndarray, "patches pixels"]
    grid_hw: tuple[int, int]
    video_s: float
    geometry: Geometry = DEFAULT_GEOMETRY

    @property
    def units(self) -> int:
        """Its tokens, merged patches."""
        return len(self.patches) // self.geometry.merge_size**2

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of its tokens."""
        rows, columns = self.grid_hw
        return rows // self.geometry.merge_size, columns // self.geometry.merge_size


def make_frame(
    pictures: Sequence[UInt8[np.ndarray, "height width 3"]],
    *,
    video_s: float,
    min_pixels: int,
    max_pixels: int,
    original_size: tuple[int, int] | None = None,
    geometry: Geometry = DEFAULT_GEOMETRY,
) -> Frame:
    """Make a frame of its pictures, RGB and of one size.

    Args:
        pictures: of one temporal patch.
        video_s: time in the video, in seconds, of the latest of them.
        min_pixels: smallest area of a resized picture.
        max_pixels: largest area of a resized picture.
        original_size: height and width that the pictures had in the video, if they were resized before.
        geometry: of the model (`config.geometry`).

    Raises:
        ExampleError: if they are more than 200 times as long as they are wide, or wide as they are long, or were
            resized to less than is wanted.
    """
    patches, (_, rows, columns) = video_to_patches(
        np.stack(pictures),
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        original_size=original_size,
        geometry=geometry,
    )
    return Frame(patches, (rows, columns), video_s, geometry)


def read_frames(
    video: str | Video | Picture, *, fps: float, min_pixels: int, max_pixels: int, geometry: Geometry = DEFAULT_GEOMETRY
) -> Iterator[Frame]:
    """Decode a video lazily, frame by frame; a last frame that is not whole is dropped.

    Args:
        video: a file, a part of one, or a clip of a record; or a picture, of which one frame is made.
        fps: pictures taken a second.
        min_pixels, max_pixels: smallest and largest area of a resized picture.
        geometry: of the model (`config.geometry`).

    Raises:
        VideoError: if the video cannot be decoded or is shorter than one frame.
        ExampleError: if a clip of a record is damaged, or has another rate or smaller frames than is wanted.
    """
    # Here, as an engine whose frames come from elsewhere needs no decoder.
    from swjax.data.pictures import read_picture
    from swjax.data.video import iter_frames

    original_size = video.original_size if isinstance(video, EncodedClip) else None
    budget = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    if isinstance(video, Picture):
        picture, shrunk_from = read_picture(video)
        copies = [picture] * geometry.temporal_patch_size
        yield make_frame(copies, video_s=0.0, original_size=shrunk_from, geometry=geometry, **budget)
        return
    yield from _frames_of(iter_frames(video, fps), str(video), fps, geometry, original_size=original_size, **budget)


def read_live_frames(
    source: str, *, fps: float, min_pixels: int, max_pixels: int, geometry: Geometry = DEFAULT_GEOMETRY
) -> Iterator[Frame]:
    """The frames of a camera, a network stream or standard input as they come (`swjax.data.live`).

    Where a source waits for nobody and frames come faster than they are taken, the oldest of those that wait are
    dropped; the times of the others stay theirs.

    Args:
        source: `-`, a device such as /dev/video0, or an address (rtsp://, http://, ...).
        fps, min_pixels, max_pixels, geometry: as for `read_frames`.

    Raises:
        VideoError: if it cannot be opened, or shows nothing that can be used.
    """
    from swjax.data.live import iter_live, newest, waits_for_nobody

    budget = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    frames = _frames_of(iter_live(source, fps), source, fps, geometry, original_size=None, **budget)
    yield from newest(frames, MOST_WAITING) if waits_for_nobody(source) else frames


def _frames_of(
    sampled: Iterable[tuple[float, UInt8[np.ndarray, "height width 3"]]],
    video: str,
    fps: float,
    geometry: Geometry,
    *,
    min_pixels: int,
    max_pixels: int,
    original_size: tuple[int, int] | None,
) -> Iterator[Frame]:
    from swjax.data.video import VideoError

    count = 0

    def counted() -> Iterator[tuple[float, np.ndarray]]:
        nonlocal count
        for timed in sampled:
            count += 1
            yield timed

    yield from make_frames(
        counted(), min_pixels=min_pixels, max_pixels=max_pixels, original_size=original_size, geometry=geometry
    )
    if count < geometry.temporal_patch_size:
        raise VideoError(
            f"{video} is shorter than one frame step: it has {count} picture(s) at {fps:g} fps and "
            f"{geometry.temporal_patch_size} make a frame ({geometry.frame_seconds(fps):g} s)"
        )


def make_frames(
    pictures: Iterable[tuple[float, UInt8[np.ndarray, "height width 3"]]],
    *,
    min_pixels: int,
    max_pixels: int,
    original_size: tuple[int, int] | None = None,
    geometry: Geometry = DEFAULT_GEOMETRY,
) -> Iterator[Frame]:
    """Frames of pictures that come from anywhere, lazily; a last frame that is not whole is dropped.

    Args:
        pictures: each with its time in seconds, RGB, of one size and at the model's rate.
        min_pixels, max_pixels, original_size, geometry: as for `make_frame`.

    Raises:
        ExampleError: as `make_frame`.
    """
    waiting: list[np.ndarray] = []
    for video_s, picture in pictures:
        waiting.append(picture)
        if len(waiting) == geometry.temporal_patch_size:
            yield make_frame(
                waiting,
                video_s=video_s,
                min_pixels=min_pixels,
                max_pixels=max_pixels,
                original_size=original_size,
                geometry=geometry,
            )
            waiting = []


def mark_last(frames: Iterable[Frame]) -> Iterator[tuple[Frame, bool]]:
    """Each frame and whether it is the last; a frame is handed on as soon as the next one, or the end, is known."""
    waiting: Sequence[Frame] = ()
    for frame in frames:
        for earlier in waiting:
            yield earlier, False
        waiting = (frame,)
    for frame in waiting:
        yield frame, True


def check_frame(frame: object, config: VisionConfig) -> None:
    """Refuse what the vision tower would not take, or would take for something else.

    Raises:
        ValueError: if it is no frame of uint8 patches, whose number is that of its grid, at a finite time.
    """
    if not isinstance(frame, Frame):
        raise ValueError(f"a stream sees a Frame at a time (make_frame, read_frames), got {shown(frame)}")
    patches, merge, given = frame.patches, config.spatial_merge_size, frame.geometry
    wanted = config.patch_size, merge, config.temporal_patch_size
    if not isinstance(given, Geometry) or (given.patch_size, given.merge_size, given.temporal_patch_size) != wanted:
        raise ValueError(
            f"the frame was cut up by {shown(given)}, which is not the model's geometry; give make_frame or "
            "read_frames that of the model's configuration"
        )
    if not isinstance(frame.grid_hw, tuple) or len(frame.grid_hw) != 2:
        raise ValueError(f"grid_hw must be the rows and columns of a frame's patches, got {shown(frame.grid_hw)}")
    rows, columns = (whole("a side of grid_hw", side, least=1, most=MAX_SIDE) for side in frame.grid_hw)
    if rows % merge or columns % merge:
        raise ValueError(f"the sides of grid_hw must be multiples of {merge} patches, got {rows} x {columns}")
    expected = f"uint8[{rows * columns}, {config.patch_dim}] for a grid of {rows} x {columns}"
    if not isinstance(patches, np.ndarray) or patches.dtype != np.uint8:
        kind = patches.dtype if isinstance(patches, np.ndarray) else type(patches).__name__
        raise ValueError(f"the patches of a frame must be {expected}, got {kind}; make_frame makes them of pictures")
    if patches.shape != (rows * columns, config.patch_dim):
        raise ValueError(f"the patches of a frame must be {expected}, got uint8{list(patches.shape)}")
    real("video_s", frame.video_s)


def merge_frames(earliest: Frame, newest: Frame) -> Frame:
    """One frame for the time of several: the first pictures of the earliest and the last pictures of the newest.

    Raises:
        ValueError: if their sizes differ.
    """
    if earliest.grid_hw != newest.grid_hw:
        raise ValueError(f"frames of {earliest.grid_hw} and {newest.grid_hw} patches cannot be merged")
    # A patch is (channel, picture, row, column); the processor writes it out in this order.
    pictures = newest.geometry.temporal_patch_size
    shape = (len(newest.patches), -1, pictures, newest.geometry.patch_size**2)
    first = slice(pictures // 2)
    merged = newest.patches.reshape(shape).copy()
    merged[:, :, first] = earliest.patches.reshape(shape)[:, :, first]
    return replace(newest, patches=merged.reshape(newest.patches.shape))
