import contextlib
import io
import struct
import time
import zlib

import hostile_files
import numpy as np
import pytest
from PIL import Image
from serving_clients import encode_picture, make_pictures

from swjax.data.pictures import (
    MAX_PARTS,
    MAX_SCANS,
    PictureError,
    count_parts,
    decode_picture,
    measure,
    pictures_to_patches,
)
from swjax.data.video import iter_frames
from swjax.inference import read_frames
from swjax.serving import Limits
from swjax.serving.pictures import check_picture
from swjax.serving.protocol import ProtocolError

LIMITS = Limits(max_message_bytes=100_000, max_picture_pixels=100_000)
BUDGET = {"min_pixels": 3136, "max_pixels": 50_176}


def frame_of(files, number=0):
    """The patches and the grid of a frame of these files."""
    return pictures_to_patches(files, [measure(data) for data in files], number, **BUDGET)


def png_of(width: int, height: int, *, depth: int = 8) -> bytes:
    """A PNG file that promises much and holds little."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def webp_of(width: int, height: int) -> bytes:
    """A WebP file whose canvas is large."""
    canvas = bytes([0, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + b"VP8X" + struct.pack("<I", len(canvas)) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(64, 48), (255, 301)])
def test_a_picture_is_measured_and_decoded(kind, size):
    (picture,) = make_pictures(1, 0, size)
    lossless = {"lossless": True} if kind == "WEBP" else {}
    file = encode_picture(picture, kind, **lossless)
    assert check_picture(file, 0, LIMITS) == size
    patches, grid = frame_of([file, file], 4)
    assert patches.shape == (np.prod(grid), 1176)
    if kind != "JPEG":
        again, _ = frame_of([encode_picture(picture)] * 2)
        np.testing.assert_array_equal(patches, again)


def test_a_lossy_webp_is_measured():
    assert check_picture(encode_picture(make_pictures(1, 0, (90, 34))[0], "WEBP", quality=50), 0, LIMITS) == (90, 34)


def test_frames_of_pictures_are_those_of_the_file(tmp_path):
    import av

    path = tmp_path / "video.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for picture in make_pictures(30, 1, (128, 96)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    files = [encode_picture(picture) for _, picture in iter_frames(str(path), 2.0)]
    ours = [frame_of(files[first : first + 2], first) for first in (0, 2, 4)]
    theirs = list(read_frames(str(path), fps=2.0, **BUDGET))
    assert len(theirs) == 3
    for (patches, grid), other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(patches, other.patches)
        assert grid == other.grid_hw


@pytest.mark.parametrize(
    ("data", "code", "names"),
    [
        (b"", "bad_picture", "picture 7 cannot be read"),
        (b"garbage" * 100, "bad_picture", "send a whole JPEG, PNG or WebP file"),
        (b"\xff\xd8\xff" + bytes(100), "bad_picture", "picture 7 cannot be read"),
        (b"RIFF" + bytes(50), "bad_picture", "head is damaged"),
        (bytes(100_001), "too_big", "100001 bytes and may have 100000"),
        (png_of(30_000, 30_000), "too_big", "30000 x 30000 pixels and may have 100000"),
        (png_of(400, 300), "too_big", "400 x 300 pixels and may have 100000"),
        (webp_of(16_383, 16_383), "too_big", "16383 x 16383 pixels"),
    ],
    ids=["empty", "garbage", "jpeg head", "webp head", "bytes", "bomb", "pixels", "webp bomb"],
)
def test_a_file_that_is_none_is_refused_by_its_head(data, code, names):
    with pytest.raises(ProtocolError, match=names) as refused:
        check_picture(data, 7, LIMITS)
    assert refused.value.code == code


def test_other_formats_and_kinds_of_pixels_are_refused():
    with pytest.raises(ProtocolError, match="cannot be read"):
        check_picture(encode_picture(make_pictures(1, 0)[0], "BMP"), 0, LIMITS)
    deep = Image.fromarray(np.zeros((8, 8), np.uint16))
    deep.save(file := io.BytesIO(), "PNG")
    with pytest.raises(ProtocolError, match="8 bits a colour"):
        check_picture(file.getvalue(), 0, LIMITS)
    pictures = [Image.fromarray(picture) for picture in make_pictures(2, 0)]
    pictures[0].save(file := io.BytesIO(), "WEBP", save_all=True, append_images=pictures[1:])
    with pytest.raises(ProtocolError, match="animation"):
        check_picture(file.getvalue(), 0, LIMITS)


def test_a_picture_that_breaks_off_is_refused_when_it_is_decoded():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = encode_picture(noise, "JPEG")
    broken = whole[: len(whole) // 2]
    assert check_picture(broken, 0, LIMITS) == (64, 64)
    with pytest.raises(PictureError, match="picture 3 cannot be read"):
        frame_of([whole, broken], 2)
    with pytest.raises(PictureError, match="differ in size"):
        frame_of([whole, encode_picture(noise[:32])], 2)
    thin = encode_picture(np.zeros((2, 600, 3), np.uint8))
    with pytest.raises(PictureError, match="too long for its width"):
        frame_of([thin, thin])


MANY = 170_000
HOSTILE = {
    "scans": (hostile_files.scans(7000), "more than 32 scans"),
    "comments": (hostile_files.segments(MANY), "more than 2048 segments"),
    "application data": (hostile_files.segments(MANY, 0xE5), "more than 2048 segments"),
    "tables": (hostile_files.segments(20_000, 0xDB, bytes([0, *[1] * 64])), "more than 2048 segments"),
    "bytes that fill": (hostile_files.between_markers(b"\xff", 2_000_000), "more than 2048 segments"),
    "junk": (hostile_files.between_markers(b"\0", 2_000_000), "more than 2048 segments"),
    "png chunks": (hostile_files.png_chunks(MANY), "more than 2048 chunks"),
    "apng frames": (hostile_files.png_chunks(MANY, b"fcTL"), "more than 2048 chunks"),
    "webp chunks": (hostile_files.webp_chunks(MANY), "more than 2048 chunks"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_of_very_many_parts_is_refused_before_pillow_sees_it(name, monkeypatch):
    data, why = HOSTILE[name]

    def never(*_args, **_named):
        raise AssertionError("it has been opened")

    monkeypatch.setattr(Image, "open", never)
    began_s = time.process_time()
    with pytest.raises(PictureError, match=why):
        decode_picture(data, measure(data))
    assert time.process_time() - began_s < 0.3


def test_pictures_of_ordinary_encoders_have_few_parts():
    noise = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), np.uint8)
    for kind, options in (("JPEG", {"progressive": True}), ("JPEG", {"icc_profile": bytes(500_000)}), ("PNG", {})):
        data = encode_picture(noise, kind, **options)
        parts, scans = count_parts(data)
        assert 3 < parts < MAX_PARTS // 4
        assert scans <= MAX_SCANS // 3
        assert decode_picture(data, (1280, 720)).shape == (720, 1280, 3)
    assert count_parts(hostile_files.scans(9))[1] == 10
    assert decode_picture(hostile_files.scans(9), (256, 256)).shape == (256, 256, 3)


def test_texts_that_unpack_to_much_do_not():
    began_s = time.process_time()
    with pytest.raises(PictureError, match="cannot be read"):
        decode_picture(data := hostile_files.png_texts(300), measure(data))
    assert time.process_time() - began_s < 2


def test_a_head_that_lies_is_refused():
    data = hostile_files.webp_of_two_sizes()
    assert measure(data) == (32, 16)
    with pytest.raises(PictureError, match="cannot be read"):
        decode_picture(data, (32, 16))


ORIENTATION = 0x0112


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"II",
        b"MM\0*",
        bytes(100),
        b"II*\0" + b"\xff" * 40,
        hostile_files.tiff((ORIENTATION, 3, 1, b"\0\x06\0\0")),
        hostile_files.tiff((ORIENTATION, 3, 2**32 - 1, b"\xff\xff\xff\xff")),
        hostile_files.tiff((ORIENTATION, 5, 1, b"\0\0\0\x10")),
        hostile_files.tiff((ORIENTATION, 99, 1, b"\0\0\0\x10")),
        hostile_files.tiff((ORIENTATION, 2, 4, b"abc\0")),
        hostile_files.tiff((0x8769, 4, 1, b"\0\0\0\x08"), (ORIENTATION, 12, 1, b"\x7f\xf8\0\0")),
        hostile_files.tiff((0x011A, 5, 1, b"\0\0\0\x02"), (0xB001, 4, 1, b"\0\0\0\x05")),
    ],
)
def test_odd_exif_is_read_or_refused_and_nothing_else(body):
    data = hostile_files.exif(body)
    with contextlib.suppress(PictureError):
        assert decode_picture(data, (64, 64)).shape == (64, 64, 3)
