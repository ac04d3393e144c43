"""Videos: real H.264 of the right length and rate, close to what was drawn, and whole or not there."""

import av
import numpy as np
import pytest

from swjax.data.moving_shapes.drawing import draw_frames
from swjax.data.moving_shapes.render import FPS, SIZE, encode, is_whole, render
from swjax.data.moving_shapes.scene import draw_scene


@pytest.fixture(scope="module")
def scene():
    return draw_scene((0, 0, 0))


@pytest.fixture(scope="module")
def video(scene, tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "scene.mp4"
    render(scene, path)
    return path


def test_the_video_is_h264_of_the_right_length_rate_and_size(scene, video):
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == FPS == 8
        assert (stream.width, stream.height) == (SIZE, SIZE)
        frames = list(container.decode(stream))
    assert len(frames) == scene.duration_s * FPS
    assert [frame.time for frame in frames] == pytest.approx([i / FPS for i in range(len(frames))])
    assert not any(frame.pict_type == av.video.frame.PictureType.B for frame in frames)


def test_the_video_shows_what_was_drawn(scene, video):
    with av.open(str(video)) as container:
        shown = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    drawn = draw_frames(scene, size=SIZE, fps=FPS)
    assert np.abs(shown.astype(int) - drawn).mean() < 3


def test_the_same_scene_gives_the_same_bytes(scene, video, tmp_path):
    render(scene, tmp_path / "again.mp4")
    assert (tmp_path / "again.mp4").read_bytes() == video.read_bytes()


def test_whole_videos_are_told_from_others(scene, video, tmp_path):
    num_frames = scene.duration_s * FPS
    assert is_whole(video, num_frames)
    assert not is_whole(video, num_frames + 1)
    assert not is_whole(tmp_path / "missing.mp4", num_frames)
    for name, content in {
        **{f"cut_{cut}.mp4": video.read_bytes()[:-cut] for cut in (300, 500, 700, 900)},
        "half.mp4": video.read_bytes()[: video.stat().st_size // 2],
        "empty.mp4": b"",
        "text.mp4": b"not a video" * 100,
    }.items():
        (tmp_path / name).write_bytes(content)
        assert not is_whole(tmp_path / name, num_frames), name


def test_a_render_that_breaks_leaves_no_video_under_its_name(scene, tmp_path, monkeypatch):
    def encode_half(frames, path, *, fps):
        encode(frames[: len(frames) // 2], path, fps=fps)
        raise OSError("the disk is full")

    monkeypatch.setattr("swjax.data.moving_shapes.render.encode", encode_half)
    with pytest.raises(OSError, match="full"):
        render(scene, tmp_path / "scene.mp4")
    assert not (tmp_path / "scene.mp4").exists()
