"""What a model is trained to do while it watches: the numbers that training, checkpoints, engine and server share."""

import math
import re
from dataclasses import dataclass, fields

from swjax.streaming.variants import DESIGNS, Variant

WAYS_OF_SPEAKING = ("wait_k", "decide")
"""When a model is trained to speak."""

_NAMED = re.compile(r"\w+(:\w+=[\w.+-]+(,\w+=[\w.+-]+)*)?")


@dataclass(frozen=True)
class StreamSpec:
    """What a model was trained to do. Its defaults are those of the whole project, and the paper's.

    Attributes:
        variant: position design, or an alias.
        wait_k: answer tokens after each frame.
        gap: first id of the answer in GIPE.
        fps: pictures taken a second; the model's geometry says how many make a frame.
        min_pixels, max_pixels: smallest and largest area of a resized picture.
        max_tail: limit on answer tokens after the last frame.
        speaking: `wait_k`, or `decide`: after each frame a token that says that there is nothing to say, or what is due
            and a token that says that it is said.
        memory: what a stream keeps unless it is told otherwise: a policy and its numbers, such as
            `window:sources=4096`. Training keeps all.
        drop: which tokens of frames are dropped, in training and in streams: a rule and its numbers, or `none`.
    """

    variant: str = "gdpe"
    wait_k: int = 3
    gap: int = 10_000
    fps: float = 2.0
    min_pixels: int = 56 * 56
    max_pixels: int = 448 * 448
    max_tail: int = 300
    speaking: str = "wait_k"
    memory: str = "keep_all"
    drop: str = "none"

    def __post_init__(self) -> None:
        """Refuse values that no model is trained with.

        Raises:
            ValueError: names the field, its value and what it may be.
        """
        for field in fields(StreamSpec):
            check_spec(field.name, getattr(self, field.name))
        if self.max_pixels < self.min_pixels:
            raise ValueError(f"max_pixels must be at least min_pixels ({self.min_pixels}), got {self.max_pixels}")
        if self.speaking == "decide" and not DESIGNS[Variant(self.variant)].speaks_while_watching:
            raise ValueError(f"speaking is 'decide', and variant {self.variant} does not speak while it watches")


def check_spec(name: str, value: object) -> None:
    """Looks whether a field of `StreamSpec` may have a value.

    Args:
        name: of the field.
        value: as it was read, of any type.

    Raises:
        ValueError: names the field, the value and what it may be.
    """
    if name == "variant":
        Variant(value)
        return
    if name == "speaking":
        if value not in WAYS_OF_SPEAKING:
            raise ValueError(f"speaking is {value!r}; it must be {' or '.join(WAYS_OF_SPEAKING)}")
        return
    if name in ("memory", "drop"):
        if not isinstance(value, str) or not _NAMED.fullmatch(value):
            raise ValueError(f"{name} is {value!r}; it must be a name, and its numbers as in name:number=8,other=9")
        if name == "drop":
            from swjax.streaming.dropping import drop_of  # here, as it imports jax

            drop_of(value)
        return
    if name == "fps":
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"fps is {value!r}; it must be of type float above 0")
        if not (math.isfinite(value) and 0 < value < 2**31):
            raise ValueError(f"fps must be above 0, got {value}")
        return
    least = 0 if name == "gap" else 1
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise ValueError(f"{name} is {value!r}; it must be of type int {'above 0' if least else 'and at least 0'}")
