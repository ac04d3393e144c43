"""What a server offers, and what a client's `open` makes of it: the arguments of a stream."""

from dataclasses import asdict, dataclass, field

from swjax.data.chat import EVALUATION_QUESTION
from swjax.inference import Mode, Sampling, StreamSettings
from swjax.inference.dropping import Drop
from swjax.inference.memory import KEEP_ALL, Memory
from swjax.inference.settings import WhenBehind
from swjax.plain import JsonView
from swjax.serving.limits import Limits
from swjax.serving.protocol import Hello, Open, ProtocolError
from swjax.streaming import DEFAULT_GEOMETRY, DESIGNS, Geometry, StreamSpec, Variant

USUAL_MODES = (Mode.PARALLEL, Mode.SEQUENTIAL, Mode.INTERLEAVED, Mode.OFFLINE)
"""All but `recompute`, whose cost grows with the square of a video's length."""


@dataclass(frozen=True)
class Choice:
    """One stream as its client wants it."""

    question: str
    settings: StreamSettings
    mode: Mode
    when_behind: WhenBehind | None
    watches_on: bool = False


@dataclass(frozen=True)
class Offer:
    """What clients can have.

    Attributes:
        model: the model's name.
        record: what it was trained to do.
        modes: the modes that clients may choose.
        limits: what the server takes.
        question: what is asked where a client asks nothing.
        geometry: the model's sizes of patches and frames.
        memory: what streams keep of what they have seen and said.
        voice: fields of `StreamSettings` that say when streams speak, where a client asks for no `wait_k`.
        drop: which tokens of their frames become slots.
    """

    model: str
    record: StreamSpec
    modes: tuple[Mode, ...] = USUAL_MODES
    limits: Limits = field(default_factory=Limits)
    question: str = EVALUATION_QUESTION
    geometry: Geometry = DEFAULT_GEOMETRY
    memory: Memory = KEEP_ALL
    voice: JsonView = field(default_factory=dict)
    drop: Drop | None = None

    def __post_init__(self) -> None:
        if (self.memory != KEEP_ALL or self.drop is not None) and Mode.RECOMPUTE in self.modes:
            raise ValueError(f"mode {Mode.RECOMPUTE} keeps all; leave it out, or the memory and the rule of dropping")
        if not self.modes_of(Variant(self.record.variant)):
            able = ", ".join(mode for mode in Mode if mode.allows(Variant(self.record.variant)))
            raise ValueError(
                f"the model's variant {self.record.variant} has none of the modes {', '.join(self.modes)}; its modes "
                f"are {able}"
            )

    def modes_of(self, variant: Variant) -> list[Mode]:
        """The modes that a variant has here, the quickest first."""
        usual = Mode.usual(variant)
        return sorted((mode for mode in self.modes if mode.allows(variant)), key=lambda mode: mode is not usual)

    @property
    def max_pictures(self) -> int:
        """Pictures of the longest video, a whole number of frames."""
        pictures = self.geometry.temporal_patch_size
        return pictures * max(1, int(self.limits.max_video_s * self.record.fps / pictures))

    def hello(self) -> Hello:
        """The first message to a client."""
        record, limits = self.record, self.limits
        variant = Variant(record.variant)
        modes = {str(one): [str(mode) for mode in self.modes_of(one)] for one in Variant}
        return Hello(
            model=self.model,
            fps=record.fps,
            pictures_per_frame=self.geometry.temporal_patch_size,
            min_pixels=record.min_pixels,
            max_pixels=record.max_pixels,
            modes={one: names for one, names in modes.items() if names},
            defaults={
                "question": self.question,
                "variant": str(variant),
                "mode": modes[variant][0],
                "wait_k": record.wait_k,
                "gap": record.gap,
                "max_tail": limits.max_tail,
            },
            limits=asdict(limits),
        )

    def choose(self, message: Open) -> Choice:
        """The stream that a client wants.

        Raises:
            ProtocolError: if it cannot have it.
        """
        variant = Variant(message.variant or self.record.variant)
        able = self.modes_of(variant)
        if not able:
            raise ProtocolError("bad_message", f'"variant" {variant} has no mode here; leave it out')
        mode = able[0] if message.mode is None else Mode(message.mode)
        if mode not in able:
            raise ProtocolError(
                "bad_message", f'"mode" must be one of {", ".join(able)} for variant {variant}, got "{mode}"'
            )
        settings = StreamSettings(
            variant=variant,
            wait_k=self.record.wait_k if message.wait_k is None else message.wait_k,
            gap=self.record.gap if message.gap is None else message.gap,
            second_per_grid_t=self.geometry.frame_seconds(self.record.fps),
            max_tail=self.limits.max_tail if message.max_tail is None else message.max_tail,
            sampling=Sampling(
                temperature=message.temperature,
                top_k=message.top_k,
                top_p=message.top_p,
                repetition_penalty=message.repetition_penalty,
                seed=message.seed,
            ),
            memory=self.memory,
            **(self.voice if message.wait_k is None and DESIGNS[variant].speaks_while_watching else {}),
            drop=self.drop,
        )
        return Choice(message.question or self.question, settings, mode, message.when_behind, message.watches_on)
