"""Parts of files of every kind against the whole file, and files that begin badly or hold more than a film."""

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image
from video_files import number_of, numbered_frame, write_video

from swjax.data import decoding
from swjax.data.decoding import VideoError
from swjax.data.example import VideoFile
from swjax.data.video import decode_video, iter_frames

RATE = 10
NUM_FRAMES = 60
X264 = {"g": "25", "bf": "3", "preset": "veryfast"}
X264_OPEN = {**X264, "x264-params": "open-gop=1:scenecut=0:keyint=25:min-keyint=25:b-pyramid=normal"}
X265_OPEN = {
    "preset": "ultrafast",
    "x265-params": "log-level=none:keyint=25:min-keyint=25:scenecut=0:bframes=4:open-gop=1",
}
IRREGULAR = [0.0, 0.033, 0.067, 0.1, 2.1, 2.133, 2.167, 2.2, 3.9, 4.0, 4.003, 5.5]

KINDS = {
    "closed.mp4": {"codec_options": X264},
    "one_key_frame.mp4": {"codec_options": {**X264, "g": "250"}},
    "open.mp4": {"codec_options": X264_OPEN},
    "open.mov": {"codec_options": X264_OPEN},
    "open.mkv": {"codec_options": X264_OPEN},
    "open.ts": {"codec_options": X264_OPEN},
    "open.flv": {"codec_options": X264_OPEN},
    "hevc_open.mp4": {"codec": "libx265", "codec_options": X265_OPEN},
    "hevc_open.ts": {"codec": "libx265", "codec_options": X265_OPEN},
    "fragmented.mp4": {"codec_options": X264, "options": {"movflags": "frag_keyframe+empty_moov+default_base_moof"}},
    "live.mkv": {"codec_options": X264, "options": {"live": "1"}},
    "h264.avi": {"codec_options": X264},
    "mpeg4.avi": {"codec": "mpeg4", "codec_options": {"bf": "2", "g": "12"}},
    "mpeg2.ts": {"codec": "mpeg2video", "codec_options": {"bf": "2", "g": "12"}, "rate": 25},
    "mpeg2.mpg": {"codec": "mpeg2video", "codec_options": {"g": "12"}, "rate": 25, "container_format": "mpeg"},
    "vp8.webm": {"codec": "libvpx", "codec_options": {"g": "25", "deadline": "realtime", "cpu-used": "8"}},
    "begins_at_100_s.mp4": {"codec_options": X264, "shift_s": 100},
    "begins_at_100_s.ts": {"codec_options": X264_OPEN, "shift_s": 100},
    "begins_with_an_edit.mp4": {"codec_options": X264, "shift_s": -1.3},
    "clock_that_wraps.ts": {"codec_options": X264, "shift_s": 2**33 / 90000 - 2},
    "irregular.mkv": {"codec_options": X264, "times": IRREGULAR},
    "irregular.mp4": {"codec_options": X264_OPEN, "times": IRREGULAR},
}


def write_kind(path: Path) -> Path:
    return write_video(path, **{"num_frames": NUM_FRAMES, "rate": RATE, **KINDS[path.name]})


def whole_film(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_shows_what_the_whole_file_shows(tmp_path, kind):
    path = write_kind(tmp_path / kind)
    pictures = whole_film(path)
    times = KINDS[kind].get("times") or [Fraction(i, KINDS[kind].get("rate", RATE)) for i in range(len(pictures))]
    assert len(times) == len(pictures) == len(KINDS[kind].get("times", range(NUM_FRAMES))) - 13 * ("edit" in kind)
    last = float(times[-1])
    for start in np.arange(0.0, last, last / 19):
        found = list(iter_frames(VideoFile(path, float(start), None), 4.0))
        assert len(found) >= 4 * (last - start)
        for time, picture in found:
            at = start + time + decoding.TIMESTAMP_TOLERANCE_S
            on_screen = max(i for i, begins in enumerate(times) if begins <= at)
            assert np.array_equal(picture, pictures[on_screen]), (start, time, number_of(picture), on_screen)


@pytest.mark.parametrize(
    "kind", ["closed.mp4", "open.mp4", "open.mkv", "open.flv", "fragmented.mp4", "h264.avi", "open.ts"]
)
def test_a_part_of_a_long_film_costs_no_more_than_a_few_groups(tmp_path, monkeypatch, kind):
    path = write_video(tmp_path / kind, num_frames=1500, rate=RATE, height=16, width=16, **KINDS[kind])
    monkeypatch.setattr(decoding, "MAX_DECODED_FRAMES", 100)
    for start in (60.0, 100.1, 142.4):
        assert len(list(iter_frames(VideoFile(path, start, start + 1), 2.0))) == 2
    with pytest.raises(VideoError, match="has more than 100 video frames"):
        list(iter_frames(path, 2.0))


def test_the_first_seek_is_the_only_one_where_it_is_right(tmp_path, monkeypatch):
    path = write_kind(tmp_path / "closed.mp4")
    begun = []
    decode = decoding._decode
    monkeypatch.setattr(decoding, "_decode", lambda *args, **how: begun.append(0) or decode(*args, **how))
    list(iter_frames(VideoFile(path, 4.9, 5.5), 2.0))
    assert len(begun) == 2  # the first frame of the file, and the part


@pytest.mark.parametrize("suffix", ["mp4", "ts", "mkv", "avi"])
def test_a_part_after_the_end(tmp_path, suffix):
    path = write_video(tmp_path / f"v.{suffix}", num_frames=40, rate=RATE)
    with pytest.raises(VideoError, match=r"\[30 s to the end\] has no frame that late, the file ends at 4\.\d0 s; "):
        list(iter_frames(VideoFile(path, 30.0), 2.0))
    with pytest.raises(VideoError, match=r"has no frame that late"):
        list(iter_frames(VideoFile(path, 1e300), 2.0))


def test_a_part_behind_a_damaged_one(tmp_path):
    texture = np.random.default_rng(0).integers(0, 99, (64, 96, 3)).astype(np.uint8)
    path = write_video(
        tmp_path / "v.mp4",
        frames=[np.roll(texture, 3 * i, axis=1) for i in range(90)],
        rate=RATE,
        codec_options={"g": "10", "bf": "0", "preset": "ultrafast"},
    )
    whole = whole_film(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 3000] = bytes(3000)
    path.write_bytes(data)
    with pytest.raises(VideoError):
        decode_video(path)
    for time, picture in iter_frames(VideoFile(path, 6.0, 8.0), 2.0):
        assert np.array_equal(picture, whole[round(RATE * (6 + time))])


@pytest.mark.parametrize("bframes", ["0", "2", "4"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_avi_has_decoding_times_alone(tmp_path, codec, bframes):
    options = {"g": "12", "bf": bframes}
    path = write_video(tmp_path / "v.avi", num_frames=40, rate=RATE, codec=codec, codec_options=options)
    found = [frame for _, frame in iter_frames(path, 10.0)]
    assert np.array_equal(found, whole_film(path))
    assert np.abs(np.array([number_of(frame) for frame in found]) - range(40)).max() <= (codec == "mpeg4")


def test_avi_with_frames_that_were_dropped(tmp_path):
    def late(number: int, packet: av.Packet) -> bool:
        if number >= 10:
            packet.pts, packet.dts = packet.pts + 20, packet.dts + 20
        return True

    path = write_video(
        tmp_path / "v.avi", num_frames=40, rate=RATE, codec="mpeg4", codec_options={"bf": "0"}, change=late
    )
    numbers = [number_of(frame) for _, frame in iter_frames(path, 10.0)]
    assert numbers == [*range(10), *[9] * 20, *range(10, 40)]


def test_times_that_repeat_and_frames_without_times(tmp_path):
    def timed(*times: tuple[int | None, int | None]) -> list[float]:
        frames = []
        for pts, dts in times:
            frame = av.VideoFrame(16, 16, "yuv420p")
            frame.pts, frame.dts, frame.time_base = pts, dts, Fraction(1, 10)
            frames.append(frame)
        return [round(time, 6) for time, _ in decoding._timed(iter(frames), VideoFile(Path("v")), has_pts=True)]

    assert timed((0, 0), (1, 1), (1, 2), (3, 3)) == [0, 0.1, 0.1, 0.3]
    assert timed((-3, 0), (-2, 1), (-1, 2)) == [-0.3, -0.2, -0.1]
    assert timed((1, 2), (4, 3), (3, 4), (5, 5)) == [0.1, 0.4, 0.4, 0.5]
    assert timed((0, 0), (2, 1), (None, None), (None, None)) == [0, 0.2, 0.4, 0.6]
    assert timed((None, 4), (None, 5)) == [0.4, 0.5]
    with pytest.raises(VideoError, match="v has frames without timestamps"):
        timed((None, None), (1, 1))


CUT = {
    "h264.mp4": {"codec_options": X264 | {"g": "10"}},
    "h264.mkv": {"codec_options": X264 | {"g": "10"}},
    "h264.ts": {"codec_options": X264_OPEN},
    "hevc.mp4": {"codec": "libx265", "codec_options": X265_OPEN},
    "mpeg4.avi": {"codec": "mpeg4", "codec_options": {"g": "10", "sc_threshold": "1000000000", "qscale": "1"}},
    "vp8.webm": {"codec": "libvpx", "codec_options": {"g": "10", "deadline": "realtime", "cpu-used": "8"}},
    "vp9.webm": {"codec": "libvpx-vp9", "codec_options": {"g": "10", "deadline": "realtime", "cpu-used": "8"}},
}


@pytest.mark.parametrize("kind", CUT)
def test_a_recording_that_begins_between_key_frames(tmp_path, caplog, kind):
    keys = []

    def cut(number: int, packet: av.Packet) -> bool:
        if packet.is_keyframe:
            keys.append((number, packet.pts, packet.time_base))
        return number >= 3

    path = write_video(tmp_path / kind, num_frames=60, rate=RATE, change=cut, **CUT[kind])
    before, pts, time_base = keys[1]
    first = round(pts * time_base * RATE)
    assert [number_of(frame) for _, frame in iter_frames(path, 10.0)] == list(range(first, 60))
    part = [number_of(frame) for _, frame in iter_frames(VideoFile(path, 1.5, 1.8), 10.0)]
    assert part == [first + 15, first + 16, first + 17]
    (message,) = [record.getMessage() for record in caplog.records]  # once, however often it is read
    assert f"{kind} begins between key frames: its first " in message
    assert f"(pictures before the first key frame: {before - 3})" in message


def test_a_film_without_a_marked_key_frame(tmp_path, caplog):
    def unmarked(number: int, packet: av.Packet) -> bool:
        packet.is_keyframe = False
        return True

    path = write_video(tmp_path / "v.nut", num_frames=40, rate=RATE, codec_options=X264, change=unmarked)
    with av.open(str(path)) as container:
        assert not any(packet.is_keyframe for packet in container.demux(video=0))
    assert [number_of(frame) for _, frame in iter_frames(path, 10.0)] == list(range(40))
    assert [number_of(frame) for _, frame in iter_frames(VideoFile(path, 2.0, 2.5), 10.0)] == list(range(20, 25))
    assert not caplog.records


def add_still_and_film(path: Path) -> Path:
    """A track of one picture, the default one, before the film."""
    with av.open(str(path), "w") as container:
        still, film = container.add_stream("mjpeg", rate=RATE), container.add_stream("libx264", rate=RATE)
        for stream, pixels in ((still, "yuvj420p"), (film, "yuv420p")):
            stream.height, stream.width, stream.pix_fmt = 64, 96, pixels
        for index in range(40):
            for stream in (film,) if index else (still, film):
                frame = av.VideoFrame.from_ndarray(numbered_frame(index or 200 * (stream is still)), "rgb24")
                frame.pts, frame.time_base = index, Fraction(1, RATE)
                container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(still.encode())
        container.mux(film.encode())
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_still_track_before_the_film(tmp_path, suffix):
    path = add_still_and_film(tmp_path / f"v.{suffix}")
    assert [number_of(frame) for _, frame in iter_frames(path, 10.0)] == list(range(40))
    assert [number_of(frame) for _, frame in iter_frames(VideoFile(path, 2.0, 2.3), 10.0)] == [20, 21, 22]


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def add_cover(path: Path) -> Path:
    """Put a cover (moov/udta/meta/ilst/covr) before the tracks of an MP4 file whose index comes last."""
    picture = path.with_suffix(".png")
    Image.new("RGB", (48, 48), (255, 0, 0)).save(picture)
    cover = box(b"covr", box(b"data", struct.pack(">II", 14, 0) + picture.read_bytes()))
    handler = box(b"hdlr", struct.pack(">II4s", 0, 0, b"mdir") + b"appl" + bytes(9))
    tags = box(b"udta", box(b"meta", bytes(4) + handler + box(b"ilst", cover)))
    data = path.read_bytes()
    moov = data.index(b"moov") - 4
    assert moov > data.index(b"mdat")
    head = 8 + struct.unpack(">I", data[moov + 8 : moov + 12])[0]  # mvhd comes first
    path.write_bytes(data[:moov] + box(b"moov", data[moov + 8 : moov + head] + tags + data[moov + head :]))
    return path


def test_a_cover_before_the_film(tmp_path):
    path = add_cover(write_video(tmp_path / "v.mp4", num_frames=40, rate=RATE))
    with av.open(str(path)) as container:
        assert [stream.codec_context.name for stream in container.streams.video] == ["png", "h264"]
    assert [number_of(frame) for _, frame in iter_frames(path, 10.0)] == list(range(40))


def test_sound_with_a_cover(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match=r"song\.mp4 has no video stream; .* not only a cover picture"):
        decode_video(add_cover(path))


def test_a_codec_that_nothing_decodes(tmp_path):
    path = write_video(tmp_path / "v.mp4", num_frames=20)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(VideoError, match=r"v\.mp4 is in a format that FFmpeg cannot decode; encode it again"):
        decode_video(path)


def test_a_stream_that_turns_up_after_the_file_was_opened(tmp_path):
    path = write_video(tmp_path / "v.mp4", num_frames=20)
    with av.open(str(path)) as opened:
        stream = opened.streams.video[0]

        def demux(wanted: av.VideoStream) -> Iterator[av.Packet]:
            yield from opened.demux(wanted)
            raise IndexError("list index out of range")

        packets = decoding._demux(SimpleNamespace(demux=demux), stream)
        assert len([frame for packet in packets for frame in packet.decode()]) == 20
