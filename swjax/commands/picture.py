"""A picture of a stream: the frames in a row and, below each, the words that were said when it had been seen."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from swjax.atomic import replacing
from swjax.inference import Frame
from swjax.storage import AnyPath, make_folder

_WIDTH, _MARGIN, _FONT_SIZE = 150, 12, 17
_INK, _FAINT, _PAPER = "#202020", "#808080", "#ffffff"


def draw_stream(frames: Sequence[Frame], words: Sequence[str], file: AnyPath) -> None:
    """Write the picture.

    Args:
        frames: the video's.
        words: for each frame, the text that was spoken after it; what followed the last one is wrapped to the full
            width below.
        file: a PNG file.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    small = ImageFont.load_default(_FONT_SIZE - 4)
    pictures = [
        _last_picture(frame).resize((_WIDTH, _scaled_height(frame)), Image.Resampling.NEAREST) for frame in frames
    ]
    columns = [_wrap(text, _WIDTH, font) for text in words[:-1]]
    total = len(frames) * (_WIDTH + _MARGIN) + _MARGIN
    tail = _wrap(words[-1], total - 2 * _MARGIN, font)
    line = _FONT_SIZE + 6
    top = _MARGIN + line
    below = top + max(picture.height for picture in pictures) + _MARGIN
    tail_top = below + line * max((len(lines) for lines in columns), default=0) + _MARGIN
    canvas = Image.new("RGB", (total, tail_top + line * (len(tail) + 1) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, (frame, picture) in enumerate(zip(frames, pictures, strict=True)):
        left = _MARGIN + index * (_WIDTH + _MARGIN)
        draw.text((left, _MARGIN), f"{frame.video_s:.1f} s", font=small, fill=_FAINT)
        canvas.paste(picture, (left, top))
        for number, text in enumerate(columns[index] if index < len(columns) else ()):
            draw.text((left, below + number * line), text, font=font, fill=_INK)
    draw.text((_MARGIN, tail_top), "after the last frame:", font=small, fill=_FAINT)
    for number, text in enumerate(tail, start=1):
        draw.text((_MARGIN, tail_top + number * line), text, font=font, fill=_INK)
    make_folder(file.parent)
    with replacing(file) as partial:
        canvas.save(partial, format="png")


def _last_picture(frame: Frame) -> Image.Image:
    """The last picture of a frame, put together again from its patches."""
    (rows, columns), patch, merge = frame.grid_hw, frame.geometry.patch_size, frame.geometry.merge_size
    shape = (rows // merge, columns // merge, merge, merge, 3, frame.geometry.temporal_patch_size, patch, patch)
    blocks = frame.patches.reshape(shape)[:, :, :, :, :, -1]
    picture = blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * patch, columns * patch, 3)
    return Image.fromarray(np.ascontiguousarray(picture))


def _scaled_height(frame: Frame) -> int:
    rows, columns = frame.grid_hw
    return round(_WIDTH * rows / columns)


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Break a text into lines that fit the width; a single word that does not fit stays whole."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
