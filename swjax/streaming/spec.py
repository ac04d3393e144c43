"""What a model is trained to do while it watches: the numbers that training, checkpoints, engine and server share."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StreamSpec:
    """What a model was trained to do; defaults are the paper's.

    Attributes:
        variant: position design.
        wait_k: answer tokens after each frame.
        gap: first id of the answer in GIPE.
        fps: pictures taken a second; two of them make a frame.
        min_pixels, max_pixels: smallest and largest area of a resized picture.
    """

    variant: str = "gdpe"
    wait_k: int = 3
    gap: int = 10_000
    fps: float = 2.0
    min_pixels: int = 56 * 56
    max_pixels: int = 448 * 448
