"""Files that cost a decoder much for what they hold."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def small(kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(file, kind, **options)
    return file.getvalue()


def scans(count: int, width: int = 256, height: int = 256) -> bytes:
    """A gray progressive JPEG: one scan of the mean of each block, then `count` that say nothing about all of them."""
    blocks = (width // 8) * (height // 8)
    start = segment(0xDB, bytes([0]) + bytes([1] * 64)) + segment(
        0xC2, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0"
    )
    one_code = bytes([1] + 15 * [0])
    start += segment(0xC4, b"\x00" + one_code + b"\x00") + segment(0xC4, b"\x10" + one_code + b"\xe0")
    first = segment(0xDA, b"\1\1\0\0\0\0") + bytes(-(-blocks // 8))
    # A run of 2**14 blocks and 14 bits more ends them all; the bits that fill are ones.
    bits = f"0{0:014b}1"
    empty = segment(0xDA, b"\1\1\0\x01\x3f\0") + int(bits, 2).to_bytes(2, "big")
    return b"\xff\xd8" + start + first + count * empty + b"\xff\xd9"


def segments(count: int, marker: int = 0xFE, data: bytes = b"") -> bytes:
    jpeg = small()
    return jpeg[:2] + count * segment(marker, data) + jpeg[2:]


def between_markers(byte: bytes, count: int) -> bytes:
    jpeg = small()
    return jpeg[:2] + byte * count + jpeg[2:]


def png_chunks(count: int, kind: bytes = b"prVt") -> bytes:
    png = small("PNG")
    return png[:33] + count * chunk(kind, b"") + png[33:]


def png_texts(count: int) -> bytes:
    """Texts that each become 1 MiB."""
    png, text = small("PNG"), zlib.compress(bytes([65]) * (2**20 - 10), 9)
    return (
        png[:33]
        + b"".join(chunk(b"zTXt", f"k{number}".encode() + b"\0\0" + text) for number in range(count))
        + png[33:]
    )


def webp_chunks(count: int) -> bytes:
    inner = small("WEBP", lossless=True)
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + 2 * (63).to_bytes(3, "little")
    body += count * (b"JUNK" + bytes(4)) + inner[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_of_two_sizes() -> bytes:
    inner = small("WEBP", lossless=True)
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + (31).to_bytes(3, "little") + (15).to_bytes(3, "little")
    body += inner[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def exif(body: bytes) -> bytes:
    jpeg = small()
    return jpeg[:2] + segment(0xE1, b"Exif\0\0" + body) + jpeg[2:]


def tiff(*entries: tuple[int, int, int, bytes]) -> bytes:
    """The head of a TIFF file, as EXIF has it, of entries: tag, kind, count, value."""
    lines = b"".join(struct.pack(">HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + lines + bytes(4)
