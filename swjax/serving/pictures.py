"""Pictures as clients send them, checked by their heads."""

from swjax.data.pictures import PictureError, measure
from swjax.serving.limits import Limits
from swjax.serving.protocol import ProtocolError


def check_picture(data: bytes, number: int, limits: Limits) -> tuple[int, int]:
    """Look at a picture's head, and no further; returns its width and height.

    Args:
        data: the file.
        number: of the picture in its video, 0 for the first.
        limits: how large it may be.

    Raises:
        ProtocolError: if it is too large, or no picture that is taken.
    """
    if len(data) > limits.max_message_bytes:
        raise ProtocolError(
            "too_big",
            f"picture {number} has {len(data)} bytes and may have {limits.max_message_bytes}; make it smaller or "
            "lower its quality",
        )
    try:
        width, height = measure(data)
    except PictureError as error:
        raise ProtocolError("bad_picture", f"picture {number} {error}") from error
    if width * height > limits.max_picture_pixels:
        raise ProtocolError(
            "too_big",
            f"picture {number} has {width} x {height} pixels and may have {limits.max_picture_pixels} in all; make it "
            "smaller",
        )
    return width, height
