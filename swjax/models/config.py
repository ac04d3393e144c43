"""What the configuration of every model says, whatever its family, and how one is made of a preset."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeVar

from swjax.models.rotary import Rotary
from swjax.plain import Json, JsonView
from swjax.streaming import DEFAULT_CHAT, ChatRule, Geometry


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a decoder; a family adds what its own has beside these.

    What is a property here, a family's own may have as a field, with a default, or as another property.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 128_000
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        if 2 * sum(self.mrope_section) != self.head_dim:
            raise ValueError(
                f"mrope_section {self.mrope_section} must sum to half the head dim of {self.head_dim}, "
                f"sums to {sum(self.mrope_section)}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")

    @property
    def head_dim(self) -> int:
        """Features of one attention head."""
        if self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} must divide hidden_size {self.hidden_size}")
        return self.hidden_size // self.num_heads

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return True

    @property
    def qk_norm(self) -> bool:
        """Whether the queries and keys of each head are normalized before they turn."""
        return False

    @property
    def mrope_interleaved(self) -> bool:
        """Whether the three ids take turns among the frequencies (`Rotary.interleaved`)."""
        return False

    @property
    def rotary(self) -> Rotary:
        """How position ids turn queries and keys."""
        return Rotary(self.head_dim, self.rope_theta, self.mrope_section, self.mrope_interleaved)


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of a vision tower; a family adds what its own has beside these."""

    out_hidden_size: int
    intermediate_size: int
    depth: int
    hidden_size: int
    num_heads: int
    patch_size: int = Geometry.patch_size
    spatial_merge_size: int = Geometry.merge_size
    temporal_patch_size: int = Geometry.temporal_patch_size
    tokens_per_second: float = Geometry.tokens_per_second

    @property
    def head_dim(self) -> int:
        """Features of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch of three colors."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    @property
    def window_units(self) -> int | None:
        """Merged patches on a side of a window of attention; None where all layers see the whole frame."""
        return None

    def widths(self, patches: int) -> list[tuple[int, int]]:
        """Patches that a patch sees in a frame of so many, each with the number of layers in which it does."""
        return [(patches, self.depth)]


@dataclass(frozen=True)
class ModelConfig(abc.ABC):
    """The whole model: what training, streaming and checkpoints read of it. A family's own is a subclass.

    Attributes:
        model_type: what config.json calls the family.
        chat: how the family chats.
    """

    model_type: ClassVar[str]
    chat: ClassVar[ChatRule] = DEFAULT_CHAT

    text: TextConfig
    vision: VisionConfig
    video_token_id: int
    image_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    bos_token_id: int
    eos_token_id: int

    def __post_init__(self) -> None:
        if self.vision.out_hidden_size != self.text.hidden_size:
            raise ValueError(
                f"the vision tower gives {self.vision.out_hidden_size} features, but the decoder takes "
                f"{self.text.hidden_size}"
            )

    @property
    def geometry(self) -> Geometry:
        """How pictures become tokens, and how the tokens of a frame are positioned."""
        vision = self.vision
        return Geometry(
            vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size, vision.tokens_per_second
        )

    @classmethod
    @abc.abstractmethod
    def from_hf(cls, config: JsonView) -> Self:
        """Read the content of a Hugging Face config.json.

        Raises:
            ValueError: if a key is missing, or asks for something that the family does not have.
        """

    @abc.abstractmethod
    def to_hf(self, dtype: str) -> Json:
        """The content of a config.json.

        Args:
            dtype: name of the weights' dtype, such as "bfloat16".
        """


Config = TypeVar("Config", bound=ModelConfig)


def from_preset(
    presets: Mapping[str, Config],
    name: str,
    *,
    text: JsonView = MappingProxyType({}),
    vision: JsonView = MappingProxyType({}),
    **overrides: object,
) -> Config:
    """A named size, with fields of the text, vision or top level replaced.

    Args:
        presets: sizes by name.
        name: of one of them.
        text, vision, overrides: fields to replace.

    Raises:
        ValueError: if the name or a field is unknown.
    """
    if name not in presets:
        raise ValueError(f"unknown model preset {name!r}; choose one of: {', '.join(presets)}")
    preset = presets[name]
    new_text, new_vision = _replace(preset.text, text, "text"), _replace(preset.vision, vision, "vision")
    return _replace(replace(preset, text=new_text, vision=new_vision), overrides, "the top level")


def _replace(config: Any, changes: JsonView, where: str) -> Any:
    known = {field.name for field in fields(config)}
    for name in changes:
        if name not in known:
            raise ValueError(f"unknown model field {name!r} in {where}; known: {', '.join(sorted(known))}")
    return replace(config, **{name: tuple(v) if isinstance(v, list) else v for name, v in changes.items()})
