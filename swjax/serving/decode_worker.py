"""A process that decodes pictures, for `swjax.serving.decoders`: run as a file, so that jax is not imported.

It is asked on its standard input and answers on its standard output, in messages of JSON and bytes. It holds nothing
that is worth having, and may be killed at any time.
"""

import json
import struct
import sys
from typing import BinaryIO

from swjax.data.pictures import PictureError, pictures_to_patches
from swjax.plain import Json
from swjax.streaming import Geometry

HEAD = struct.Struct(">II")
"""Sizes of a message's JSON object and of the bytes behind it."""

READY = b"+"
"""What it says when it can be asked."""


def pack(head: Json, body: bytes = b"") -> bytes:
    """A message."""
    text = json.dumps(head).encode()
    return HEAD.pack(len(text), len(body)) + text + body


def answer(head: Json, body: bytes) -> bytes:
    """The answer to a question: the grid and the patches of a frame, or why there is none."""
    files, first = [], 0
    for count in head["bytes"]:
        files.append(body[first : first + count])
        first += count
    try:
        patches, grid = pictures_to_patches(
            files,
            [(width, height) for width, height in head["sizes"]],
            head["number"],
            min_pixels=head["min_pixels"],
            max_pixels=head["max_pixels"],
            geometry=Geometry(**head["geometry"]),
        )
    except PictureError as error:
        return pack({"error": str(error)})
    return pack({"grid": grid}, patches.tobytes())


def main(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer until nobody asks any more."""
    sink.write(READY)
    sink.flush()
    while len(sizes := source.read(HEAD.size)) == HEAD.size:
        text, body = (source.read(size) for size in HEAD.unpack(sizes))
        sink.write(answer(json.loads(text), body))
        sink.flush()


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
