"""How a stream is to be watched and spoken about."""

import enum
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from swjax.inference.dropping import DTD, Drop
from swjax.inference.memory import KEEP_ALL, Memory
from swjax.inference.numbers import real, shown, whole
from swjax.inference.sampler import GREEDY, Sampling
from swjax.inference.voice import check_rule
from swjax.streaming import DESIGNS, QWEN_DECISIONS, DecisionTokens, Design, Speaking, Storage, StreamSpec, Variant
from swjax.streaming.speaking import DIFFERENT_BELOW, DropTrigger

LONGEST_GRID_S = 3600.0
"""The most seconds from one frame to the next: temporal ids of a hundred thousand such frames are within int32."""


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
        memory: what the stream keeps of what it has seen and said.
        speaking_rule: says when to speak, in the place of `wait_k`. What has been begun is finished before the next
            frame is seen, and after the last frame up to `<|im_end|>`.
        decisions: the tokens that say that there is nothing to say, or no more; only a rule reads them.
        drop: which tokens of a frame become slots; None for all.
    """

    variant: Variant = Variant.GDPE
    wait_k: int = StreamSpec.wait_k
    counts: tuple[int, ...] | None = None
    gap: int = StreamSpec.gap
    second_per_grid_t: float = 1.0
    max_tail: int = StreamSpec.max_tail
    sampling: Sampling = GREEDY
    stop_tokens: tuple[int, ...] = ()
    memory: Memory = KEEP_ALL
    speaking_rule: Speaking | None = None
    decisions: DecisionTokens = QWEN_DECISIONS
    drop: Drop | None = None

    def __post_init__(self) -> None:
        try:
            given: dict[str, object] = {
                "wait_k": whole("wait_k", self.wait_k, least=1),
                "max_tail": whole("max_tail", self.max_tail, least=1),
                "gap": whole("gap", self.gap),
            }
        except ValueError as error:
            raise ValueError(f"wait_k and max_tail must be at least 1 and gap at least 0; {error}") from error
        given["variant"] = Variant(self.variant)
        given["second_per_grid_t"] = real(
            "second_per_grid_t", self.second_per_grid_t, least=1 / LONGEST_GRID_S, most=LONGEST_GRID_S
        )
        if self.counts is not None:
            given["counts"] = tuple(
                whole("the schedule has a negative count, or none: each", count)
                for count in _each("counts", self.counts)
            )
        given["stop_tokens"] = tuple(whole("a stop token", token) for token in _each("stop_tokens", self.stop_tokens))
        if not isinstance(self.sampling, Sampling):
            raise ValueError(f"sampling must be a Sampling, got {shown(self.sampling)}")
        if isinstance(self.memory, type) or not all(hasattr(self.memory, name) for name in ("is_full", "keep")):
            raise ValueError(
                f"memory must be a policy, such as Window() or memory_of('window'), got {shown(self.memory)}"
            )
        if isinstance(self.drop, type) or (self.drop is not None and not hasattr(self.drop, "keep")):
            raise ValueError(f"drop must be a rule, such as DTD() or drop_of('dtd'), or None, got {shown(self.drop)}")
        for name, value in given.items():
            object.__setattr__(self, name, value)
        if self.speaking_rule is not None:
            check_rule(self.speaking_rule)
            if self.counts is not None or not self.design.speaks_while_watching:
                raise ValueError(
                    "a rule of speaking takes the place of a schedule, in variants that speak while they watch; "
                    f"got counts {shown(self.counts)} and variant {self.variant}"
                )
            if self.verifies and not (self.design.grouped and self.memory == KEEP_ALL):
                raise ValueError(
                    "verify reads what was said again in its place, so frames may not stand behind words, nor anything "
                    f"be moved: use a design with the group mask and memory keep_all, not {self.variant} and "
                    f"{self.memory}"
                )

    @property
    def design(self) -> Design:
        """The variant's row in the table of designs."""
        return DESIGNS[self.variant]

    @property
    def verifies(self) -> bool:
        """Whether what was said last is read again when a frame has arrived."""
        return self.speaking_rule is not None and "surprise" in self.speaking_rule.needs

    @property
    def looks_by(self) -> Drop | None:
        """What frames are looked at by before they are laid out: the rule of dropping, or `drop_trigger`'s measure."""
        measures = DTD(tau=DIFFERENT_BELOW) if isinstance(self.speaking_rule, DropTrigger) else None
        return measures if self.drop is None else self.drop

    @property
    def step(self) -> int:
        """The most words after a frame, the last one included."""
        return max(self.max_tail, self.words_an_item, *(self.counts or ()))

    @functools.cached_property
    def words_an_item(self) -> int:
        """Words after a frame, without explicit counts; the most, where a rule says when to speak."""
        return self.wait_k if self.speaking_rule is None else check_rule(self.speaking_rule)

    def words_after(self, frame: int, *, last: bool | None = False) -> int:
        """The rule of speaking: answer tokens that are spoken after a frame, before the next one.

        Args:
            frame: its number among those that were taken in.
            last: whether it ends the video, so that all that is left follows it; None if that is not known yet.

        Raises:
            ValueError: if an explicit schedule has no count for it.
        """
        if last:
            return self.max_tail
        if not self.design.speaks_while_watching:
            return 0
        if self.counts is None:
            return self.words_an_item
        if last is None and frame == len(self.counts):
            return 0  # it may be the last, whose count is not used: what follows it will show
        if frame >= len(self.counts):
            raise ValueError(f"the schedule has counts for {len(self.counts)} frames, but frame {frame} has come")
        return self.counts[frame]


def _each(name: str, values: object) -> Iterable[object]:
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise ValueError(f"{name} must be whole numbers one after another, got {shown(values)}")
    return values


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
    def _missing_(cls, value: object) -> "Mode":
        raise ValueError(f"unknown mode {shown(value)}; choose one of {', '.join(cls)}")

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


def check_when_behind(when_behind: object) -> None:
    """Refuse what is no answer to late frames.

    Raises:
        ValueError: if it is none of `WhenBehind`, nor None.
    """
    if when_behind is not None and when_behind not in get_args(WhenBehind):
        raise ValueError(f"when_behind must be {', '.join(get_args(WhenBehind))} or None, got {shown(when_behind)}")


def check_speed(speed: object) -> None:
    """Refuse a pace at which no frame would ever be due.

    Raises:
        ValueError: if it is neither None nor a finite number above zero.
    """
    if speed is not None:
        real("speed", speed, least=1 / LONGEST_GRID_S)
