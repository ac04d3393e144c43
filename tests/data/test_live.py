"""Sources that are read as they come: what they show is what the file shows."""

import http.server
import io
import itertools
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from video_files import numbered_frame, write_video

from swjax.data.decoding import VideoError
from swjax.data.live import is_live, iter_live, newest, waits_for_nobody
from swjax.data.video import iter_frames
from swjax.inference import read_frames, read_live_frames
from swjax.notice import Notice


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """Three seconds in a container that can be read from a pipe."""
    frames = [numbered_frame(number, 56, 56) for number in range(12)]
    return write_video(tmp_path_factory.mktemp("live") / "a.mkv", frames=frames, rate=4)


@pytest.fixture
def served(film: Path) -> Iterator[str]:
    """The folder of the film on loopback."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given) -> None:
            super().__init__(*given, directory=str(film.parent))

        def log_message(self, *_) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def standard_input(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_) -> int:
            raise OSError("it is a pipe")

    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=Pipe(data)))


def assert_same(found, expected) -> None:
    found, expected = list(found), list(expected)
    assert [time_s for time_s, _ in found] == [time_s for time_s, _ in expected]
    for (_, picture), (_, other) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(picture, other)


@pytest.mark.parametrize("fps", [2.0, 3.0])
def test_a_stream_shows_what_the_file_shows(film, served, monkeypatch, fps) -> None:
    standard_input(monkeypatch, film.read_bytes())
    for source in (f"{served}/a.mkv", "-"):
        assert_same(iter_live(source, fps), iter_frames(film, fps))


def test_frames_of_a_stream(film, served) -> None:
    budget = {"fps": 2.0, "min_pixels": 3136, "max_pixels": 3136}
    live, stored = list(read_live_frames(f"{served}/a.mkv", **budget)), list(read_frames(film, **budget))
    assert len(live) == 3
    for one, other in zip(live, stored, strict=True):
        assert (one.video_s, one.grid_hw) == (other.video_s, other.grid_hw)
        np.testing.assert_array_equal(one.patches, other.patches)


@pytest.mark.parametrize("damage", ["cut off", "overwritten"])
def test_a_stream_that_is_damaged_shows_what_can_be_shown(film, monkeypatch, damage) -> None:
    data = bytearray(film.read_bytes())
    middle = len(data) // 2
    data[middle : None if damage == "cut off" else middle + 40] = b"" if damage == "cut off" else b"\xff" * 40
    standard_input(monkeypatch, bytes(data))
    shown = list(iter_live("-", 2.0))
    assert 1 <= len(shown) < 6 + (damage != "cut off")
    assert [time_s for time_s, _ in shown] == [number / 2 for number in range(len(shown))]


def test_what_cannot_be_opened_is_named(served, monkeypatch) -> None:
    standard_input(monkeypatch, b"no video")
    for source, words in (
        ("-", r"- cannot be opened .*; send MPEG-TS, Matroska or fragmented MP4"),
        (f"{served}/none.mkv", r"none\.mkv cannot be opened"),
        ("/dev/nothing", r"/dev/nothing cannot be opened"),
    ):
        with pytest.raises(VideoError, match=words):
            next(iter_live(source, 2.0))


def test_names_of_live_sources() -> None:
    live = {"-": False, "/dev/video0": True, "rtsp://a/b": True, "http://a/b": False}
    assert {source: waits_for_nobody(source) for source in live} == live
    assert all(map(is_live, live))
    assert not any(map(is_live, ["a.mp4", "gs://bucket/a.mp4", "./-", "dev/a.mp4"]))


def test_of_a_source_that_does_not_wait_the_oldest_are_dropped() -> None:
    read = threading.Event()

    def camera() -> Iterator[int]:
        yield from range(100)
        read.set()

    items = newest(camera(), 4)
    read.wait(10)
    first = next(items)
    read.wait(10)
    with pytest.warns(Notice, match="frames were dropped, as they came faster"):
        shown = [first, *items]
    assert shown[-4:] == [96, 97, 98, 99]
    assert len(shown) < 12
    assert shown == sorted(set(shown))

    def broken() -> Iterator[int]:
        yield 1
        raise VideoError("it is gone")

    with pytest.raises(VideoError, match="it is gone"):
        list(newest(broken(), 4))
    assert list(itertools.islice(newest(itertools.count(), 4), 3))
