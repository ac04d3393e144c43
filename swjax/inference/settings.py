"""How a stream is to be watched and spoken about."""

import enum
from dataclasses import dataclass
from typing import Literal

from swjax.inference.sampler import GREEDY, Sampling
from swjax.streaming import DESIGNS, Design, Storage, Variant


@dataclass(frozen=True)
class StreamSettings:
    """How a stream is spoken about; use what the model was trained with.

    Attributes:
        variant: position design.
        wait_k: answer tokens after each frame.
        counts: answer tokens after each frame one by one, in the place of `wait_k`: an explicit schedule, or one from
            `swjax.streaming.random_schedule`. The last frame's count is not used: what is left follows it.
        gap: first id of the answer in GIPE.
        second_per_grid_t: seconds from one frame to the next.
        max_tail: limit on answer tokens after the last frame (the paper's 300).
        sampling: how the next token is chosen.
        stop_tokens: tokens that end the answer, beside `<|im_end|>`.
    """

    variant: Variant = Variant.GDPE
    wait_k: int = 3
    counts: tuple[int, ...] | None = None
    gap: int = 10_000
    second_per_grid_t: float = 1.0
    max_tail: int = 300
    sampling: Sampling = GREEDY
    stop_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "variant", Variant(self.variant))
        if self.wait_k < 1 or self.max_tail < 1 or self.gap < 0:
            raise ValueError(f"wait_k and max_tail must be at least 1 and gap at least 0, got {self}")
        if self.counts is not None:
            object.__setattr__(self, "counts", tuple(int(count) for count in self.counts))
            if min(self.counts, default=0) < 0:
                raise ValueError(f"the schedule has a negative count: {self.counts}")

    @property
    def design(self) -> Design:
        """The variant's row in the table of designs."""
        return DESIGNS[self.variant]

    def words_after(self, frame: int) -> int:
        """Answer tokens after a frame that is not the last.

        Raises:
            ValueError: if an explicit schedule has no count for it.
        """
        if self.counts is None:
            return self.wait_k
        if frame >= len(self.counts):
            raise ValueError(f"the schedule has counts for {len(self.counts)} frames, but frame {frame} has come")
        return self.counts[frame]


USUAL_SETTINGS = StreamSettings()
"""GDPE, wait-3, greedy."""


class Mode(enum.StrEnum):
    """What happens at a time. All modes run the same passes, so that a comparison changes one thing."""

    PARALLEL = "parallel"
    """A pass advances the word being spoken and the frame that has arrived meanwhile (variants with the group mask)."""
    SEQUENTIAL = "sequential"
    """A frame, then words, then a frame: each from the cache (variants with the group mask)."""
    INTERLEAVED = "interleaved"
    """The same in one sequence: a frame sees the words before it (variant interleave)."""
    OFFLINE = "offline"
    """The whole video first, then the answer; every variant."""
    RECOMPUTE = "recompute"
    """As the evaluation code of the paper's authors: at each frame all frames are encoded and the whole prefix is run
    again, then words are decoded from its cache."""

    @classmethod
    def usual(cls, variant: Variant) -> "Mode":
        """The quickest mode that a variant allows."""
        design = DESIGNS[variant]
        if design.grouped:
            return cls.PARALLEL
        return cls.INTERLEAVED if design.speaks_while_watching else cls.OFFLINE

    def allows(self, variant: Variant) -> bool:
        """Whether a variant can be streamed in this mode."""
        design = DESIGNS[variant]
        match self:
            case Mode.PARALLEL | Mode.SEQUENTIAL:
                return design.grouped
            case Mode.INTERLEAVED:
                return design.storage is Storage.ARRIVAL
            case Mode.RECOMPUTE:
                return design.speaks_while_watching
            case Mode.OFFLINE:
                return True

    def check(self, variant: Variant) -> None:
        """Refuse a variant that does not allow the mode.

        Raises:
            ValueError: if it does not.
        """
        if not self.allows(variant):
            able = ", ".join(mode for mode in Mode if mode.allows(variant))
            raise ValueError(f"variant {variant} cannot be streamed in mode {self}; its modes are {able}")


WhenBehind = Literal["delay", "drop", "merge"]
"""What becomes of frames that arrive while earlier ones still wait to be taken in.

- `delay`: they wait, and the stream falls behind its clock;
- `drop`: all but the newest are dropped; the newest keeps its place in time;
- `merge`: all that wait become one frame, of the earliest's first picture and the newest's last.
"""
