"""Sampling times at several frame rates, and the error of every kind of bad file."""

import itertools
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from video_files import number_of, numbered_frame, write_video

from swjax.data import decoding
from swjax.data.example import VideoFile
from swjax.data.video import VideoError, decode_video, iter_frames


@pytest.mark.parametrize(
    ("rate", "numbers"),
    [
        (24, [0, 12, 24, 36, 48, 60, 72, 84]),
        (25, [0, 12, 25, 37, 50, 62, 75, 87]),
        (30, [0, 15, 30, 45, 60, 75, 90, 105]),
        # Frame 45 comes at 1.5015 s and frame 60 at 2.002 s, so the samples still show the frames before them.
        (Fraction(30000, 1001), [0, 15, 30, 44, 59, 74, 89, 104]),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_samples_by_timestamp(tmp_path, rate, numbers, suffix):
    frames = decode_video(write_video(tmp_path / f"v{suffix}", num_frames=round(4 * rate), rate=rate))
    assert frames.shape == (8, 64, 96, 3)
    assert frames.dtype == np.uint8
    assert [number_of(frame) for frame in frames] == numbers


def test_other_sampling_rates(tmp_path):
    path = write_video(tmp_path / "v.mp4", num_frames=72, rate=24)
    assert [number_of(frame) for frame in decode_video(path, fps=4)] == list(range(0, 72, 6))
    assert [number_of(frame) for frame in decode_video(path, fps=1)] == [0, 24]
    assert [number_of(frame) for frame in decode_video(path, fps=48)] == [i // 2 for i in range(144)]


def test_variable_rate(tmp_path):
    times = [0, 0.1, 0.2, 0.9, 1.0, 1.45, 2.7, 2.8, 2.9]
    path = write_video(tmp_path / "v.mp4", times=times)
    sampled = list(iter_frames(path, 2.0))
    assert [time for time, _ in sampled] == [0, 0.5, 1, 1.5, 2, 2.5]
    assert [number_of(frame) for _, frame in sampled] == [0, 2, 4, 5, 5, 5]


def test_time_starts_at_the_first_frame(tmp_path):
    late = write_video(tmp_path / "v.mkv", times=[3 + i / 10 for i in range(20)])
    assert [number_of(frame) for frame in decode_video(late)] == [0, 5, 10, 15]


def test_last_half_step_is_dropped(tmp_path):
    path = write_video(tmp_path / "v.mp4", num_frames=60, rate=24)
    assert len(list(iter_frames(path, 2.0))) == 5
    assert len(decode_video(path)) == 4


def test_frames_come_lazily(tmp_path):
    whole = write_video(tmp_path / "v.mp4", num_frames=96, options={"movflags": "faststart"})
    data = whole.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: int(0.7 * len(data))])
    stream = iter_frames(cut, 2.0)
    assert [number_of(frame) for _, frame in itertools.islice(stream, 2)] == [0, 12]
    with pytest.raises(VideoError, match=r"cut\.mp4 cannot be decoded|cut\.mp4 breaks off|damaged frame"):
        list(stream)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_is_applied(tmp_path, rotation):
    pixels = np.full((64, 96, 3), 60, np.uint8)
    pixels[:32, :32] = 240
    path = write_video(tmp_path / "v.mp4", frames=[pixels] * 24, rotation=rotation)
    upright = np.rot90(pixels, rotation // 90)
    decoded = decode_video(path)[0]
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).mean() < 5


def with_display_matrix(path: Path, a: float, b: float, c: float, d: float) -> Path:
    """An MP4 file that takes column x and row y to (a x + c y, b x + d y)."""
    pixels = np.full((64, 96, 3), 60, np.uint8)
    pixels[:32, :32] = 240
    data = bytearray(write_video(path, frames=[pixels] * 24).read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", *(round(65536 * v) for v in (a, b, 0, c, d, 0, 0, 0, 16384)))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "matrix",
    [(x * s, 0, 0, y * s) for x in (1, -1) for y in (1, -1) for s in (1, 2)]
    + [(0, x, y, 0) for x in (1, -1) for y in (1, -1)]
    + [(0.00001, -1, 1, 0.00001)],
)
def test_every_quarter_turn_and_mirroring_is_applied(tmp_path, matrix):
    a, b, c, d = np.sign(np.round(matrix)).astype(int)
    decoded = decode_video(with_display_matrix(tmp_path / "v.mp4", *matrix))[0]
    expected = np.full((64, 96) if a else (96, 64), 60)
    for row, column in np.ndindex(32, 32):  # the light corner, pixel by pixel; what is below zero counts from the end
        x, y = a * column + c * row, b * column + d * row
        expected[y if b + d > 0 else y - 1, x if a + c > 0 else x - 1] = 240
    assert decoded.shape == (*expected.shape, 3)
    assert np.abs(decoded.astype(int) - expected[..., None]).mean() < 5


@pytest.mark.parametrize(("tag", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_frames_with_side_data_that_pyav_does_not_know(tmp_path, tag, turns):
    pixels = np.full((64, 96, 3), 60, np.uint8)
    pixels[:32, :32] = 240
    exif = Image.Exif()
    exif[0x0112] = tag  # orientation
    Image.fromarray(pixels).save(tmp_path / "picture.jpg", exif=exif, quality=95)
    _, decoded = next(iter_frames(tmp_path / "picture.jpg"))
    assert np.abs(decoded.astype(int) - np.rot90(pixels, turns)).mean() < 5


def test_a_display_matrix_of_zeros_says_nothing(tmp_path):
    decoded = decode_video(with_display_matrix(tmp_path / "v.mp4", 0, 0, 0, 0))[0]
    assert decoded.shape == (64, 96, 3)
    assert decoded[:30, :30].mean() > 230


def test_other_angles_are_refused(tmp_path):
    with pytest.raises(VideoError, match=r"v\.mp4 is to be shown at an angle that is no quarter turn; encode it again"):
        decode_video(with_display_matrix(tmp_path / "v.mp4", 0.7071, 0.7071, -0.7071, 0.7071))


COLORS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 255, 255), (0, 0, 0), (200, 120, 60)])


@pytest.mark.parametrize(
    ("standard", "red", "blue", "tag"),
    [
        ("bt709", 0.2126, 0.0722, 1),
        ("smpte170m", 0.299, 0.114, 6),
        ("bt2020nc", 0.2627, 0.0593, 9),
        (None, 0.299, 0.114, 2),
    ],
)
@pytest.mark.parametrize("full_range", [False, True])
def test_colors_are_those_of_the_standard_that_the_file_names(tmp_path, standard, red, blue, tag, full_range):
    """Y'CbCr as ITU-R BT.601, BT.709 and BT.2020 write it; a file that names no standard is read as BT.601."""
    luma = np.array([red, 1 - red - blue, blue])
    from_rgb = np.stack([luma, (np.eye(3)[2] - luma) / (2 * (1 - blue)), (np.eye(3)[0] - luma) / (2 * (1 - red))])
    scale, offset = ((255, 255, 255), (0, 128, 128)) if full_range else ((219, 224, 224), (16, 128, 128))
    components = np.clip(np.rint(COLORS / 255 @ from_rgb.T * scale + offset), 0, 255).astype(np.uint8)
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        named = f"fullrange={'on' if full_range else 'off'}" + (f":colormatrix={standard}" if standard else "")
        stream = container.add_stream("libx264", rate=2, options={"qp": "0", "x264-params": named})
        stream.width, stream.height, stream.pix_fmt = 16 * len(COLORS), 64, "yuv444p"
        for index in range(2):
            frame = av.VideoFrame(stream.width, 64, "yuv444p")
            frame.pts, frame.colorspace, frame.color_range = index, tag, 2 if full_range else 1
            for plane, values in zip(frame.planes, np.repeat(components.T, 16, axis=1), strict=True):
                padded = np.zeros((64, plane.line_size), np.uint8)
                padded[:, : stream.width] = values
                plane.update(padded.tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    decoded = decode_video(path)[0]
    assert np.abs(decoded[32, 8::16].astype(int) - COLORS).max() <= 2


def test_a_url_is_no_file():
    with pytest.raises(VideoError, match=r"https://example\.org/a\.mp4 is a URL, .*; download it and give the file"):
        decode_video("https://example.org/a.mp4")


def test_missing_file(tmp_path):
    with pytest.raises(VideoError, match=r"there is no video file .*none\.mp4; check the path"):
        decode_video(tmp_path / "none.mp4")


def test_not_a_video(tmp_path):
    path = tmp_path / "text.mp4"
    path.write_text("this is no video " * 100)
    with pytest.raises(VideoError, match=r"text\.mp4 cannot be decoded \(.+\); .*encode it again"):
        decode_video(path)
    path.write_bytes(b"")
    with pytest.raises(VideoError, match=r"text\.mp4 cannot be decoded"):
        decode_video(path)


def test_no_video_stream(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for index in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, 1024 * index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match=r"sound\.mp4 has no video stream"):
        decode_video(path)


@pytest.mark.parametrize("num_frames", [1, 6, 12])
def test_shorter_than_a_step(tmp_path, num_frames):
    path = write_video(tmp_path / "short.mp4", num_frames=num_frames, rate=24)
    with pytest.raises(VideoError, match=r"short\.mp4 is too short: 1 frame\(s\) at 2 fps, .* needs 2 \(1 s\)"):
        decode_video(path)


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_off_file(tmp_path, options, share):
    texture = np.random.default_rng(0).integers(0, 99, (64, 96, 3)).astype(np.uint8)
    frames = [np.roll(texture, 3 * i, axis=1) for i in range(96)]
    data = write_video(tmp_path / "v.mp4", frames=frames, options=options).read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(VideoError, match=r"cut\.mp4 (cannot be decoded|breaks off after|has a damaged frame)"):
        decode_video(cut)


def test_cut_on_a_packet(tmp_path):
    """The container promises more than it holds and the decoder notices nothing."""
    whole = write_video(tmp_path / "v.mkv", num_frames=96)
    data = whole.read_bytes()
    cut = tmp_path / "cut.mkv"
    with av.open(str(whole)) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.pos is not None and packet.size]
    # Matroska keeps its duration in the header; a block starts a few bytes before its packet's data.
    cut.write_bytes(data[: positions[48]])
    with pytest.raises(VideoError, match=r"cut\.mkv breaks off after 2\.0\d s of the 4\.\d+ s that it promises"):
        decode_video(cut)


def test_damaged_in_the_middle(tmp_path):
    texture = np.random.default_rng(0).integers(0, 99, (64, 96, 3)).astype(np.uint8)
    path = write_video(tmp_path / "v.mp4", frames=[np.roll(texture, 3 * i, axis=1) for i in range(96)])
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"v\.mp4 (cannot be decoded|has a damaged frame)"):
        decode_video(path)


def test_limits(tmp_path):
    path = write_video(tmp_path / "v.mp4", num_frames=96)
    with pytest.raises(VideoError, match=r"v\.mp4 has more than 4 frames at 2 fps \(2 s\)"):
        decode_video(path, max_frames=4)
    assert len(decode_video(path, max_frames=8)) == 8
    with pytest.raises(VideoError, match=r"v\.mp4 has frames of 96 x 64 pixels, more than the limit of 6000"):
        decode_video(path, max_frame_pixels=6000)
    with pytest.raises(ValueError, match="fps must be above 0, got 0"):
        decode_video(path, fps=0)


def test_raw_stream_without_timestamps(tmp_path):
    path = tmp_path / "v.h264"
    with av.open(str(path), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for index in range(48):
            frame = av.VideoFrame.from_ndarray(numbered_frame(index), "rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match=r"v\.h264 has frames without timestamps"):
        decode_video(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    ("start", "end", "numbers"),
    [
        (0.0, 2.0, [0, 12, 24, 36]),
        (3.0, 5.0, [72, 84, 96, 108]),
        (3.25, 4.75, [78, 90, 102]),
        (8.0, None, [192, 204, 216, 228]),
    ],
)
def test_part_of_a_file(tmp_path, suffix, start, end, numbers):
    path = write_video(tmp_path / f"v{suffix}", num_frames=240)
    found = list(iter_frames(VideoFile(path, start, end), 2.0))
    assert [number_of(frame) for _, frame in found] == numbers
    assert [time for time, _ in found] == [0.5 * i for i in range(len(numbers))]


def test_a_part_begins_with_what_is_on_screen(tmp_path):
    path = write_video(tmp_path / "v.mp4", times=[0, 1, 5, 6, 7])
    assert [number_of(frame) for _, frame in iter_frames(VideoFile(path, 3.0, 6.5), 1.0)] == [1, 1, 2, 3]


def test_a_part_that_is_not_there(tmp_path):
    path = write_video(tmp_path / "v.mp4", num_frames=96)
    with pytest.raises(VideoError, match=r"is to end at 9 s, but the file ends at 4\.00 s"):
        decode_video(VideoFile(path, 2.0, 9.0))
    with pytest.raises(VideoError, match=r"v\.mp4 \[3 s to 2 s\] ends before it begins"):
        decode_video(VideoFile(path, 3.0, 2.0))
    with pytest.raises(VideoError, match=r"is to end at 32 s, but the file ends at 4\.00 s"):
        decode_video(VideoFile(path, 30.0, 32.0))


def test_a_part_of_a_long_file_is_not_read_from_its_beginning(tmp_path, monkeypatch):
    path = write_video(tmp_path / "v.mp4", num_frames=24 * 60)
    monkeypatch.setattr(decoding, "MAX_DECODED_FRAMES", 400)
    assert len(decode_video(VideoFile(path, 40.0, 44.0))) == 8
    with pytest.raises(VideoError, match="has more than 400 video frames; cut it into parts"):
        decode_video(path)
