"""How a decoded frame is turned and mirrored before it is shown, from the display matrix that comes with it."""

from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type
from jaxtyping import UInt8

# A matrix that is this close to a quarter turn (the tangent of half a degree) was meant to be one.
_NEARLY = 0.009


class Orientation(NamedTuple):
    """What is done to a frame to show it: rows and columns are exchanged first, then each axis is flipped or not."""

    transposed: bool = False
    columns_flipped: bool = False
    rows_flipped: bool = False


# Counterclockwise.
_TURNS = {
    0: Orientation(),
    90: Orientation(transposed=True, rows_flipped=True),
    180: Orientation(columns_flipped=True, rows_flipped=True),
    270: Orientation(transposed=True, columns_flipped=True),
}


def read_orientation(frame: av.VideoFrame) -> Orientation | None:
    """The orientation of a frame; upright where the file says nothing, None for an angle that is no quarter turn.

    The matrix (ISO/IEC 14496-12, 6.2.2) takes column x and row y to (a x + c y, b x + d y). Its scale is not looked at.
    """
    try:
        data = frame.side_data.get(Type.DISPLAYMATRIX)
    except (
        ValueError
    ):  # PyAV reads no side data of a frame that has a kind unknown to it, such as EXIF or a view's number
        return _TURNS.get(frame.rotation % 360)
    if data is None:
        return Orientation()
    (a, b), (c, d) = np.frombuffer(data, np.int32).reshape(3, 3)[:2, :2].astype(float)
    along, across = min(abs(a), abs(d)), min(abs(b), abs(c))
    if max(abs(b), abs(c)) <= _NEARLY * along:  # so is a matrix of zeros, which says nothing
        return Orientation(False, bool(a < 0), bool(d < 0))
    if max(abs(a), abs(d)) <= _NEARLY * across:
        return Orientation(True, bool(c < 0), bool(b < 0))
    return None


def turned(
    pixels: UInt8[np.ndarray, "height width 3"], orientation: Orientation
) -> UInt8[np.ndarray, "shown_height shown_width 3"]:
    """A frame as it is shown, contiguous in memory."""
    if orientation.transposed:
        pixels = pixels.swapaxes(0, 1)
    if orientation.columns_flipped:
        pixels = pixels[:, ::-1]
    if orientation.rows_flipped:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
