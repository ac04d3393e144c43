"""The configuration of Qwen2.5-VL: presets, and Hugging Face's config.json read and written."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from swjax.models import config as shared
from swjax.models.config import ModelConfig, TextConfig, from_preset
from swjax.models.config_json import Section
from swjax.plain import Json, JsonView

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
"""The class of transformers."""


@dataclass(frozen=True)
class VisionConfig(shared.VisionConfig):
    """Sizes of the vision tower. Defaults are what all released Qwen2.5-VL sizes share."""

    depth: int = 32
    hidden_size: int = 1280
    num_heads: int = 16
    window_size: int = 112
    full_attention_blocks: tuple[int, ...] = (7, 15, 23, 31)
    rope_theta: float = 10_000.0
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(
                f"the head dim of the vision tower, hidden_size {self.hidden_size} / num_heads {self.num_heads}, "
                "must be a multiple of 4"
            )

    @property
    def window_units(self) -> int:
        """Merged patches on a side of a window."""
        return self.window_size // self.spatial_merge_size // self.patch_size

    def widths(self, patches: int) -> list[tuple[int, int]]:
        """Layers without windows and those with them."""
        window, full = (self.window_size // self.patch_size) ** 2, len(self.full_attention_blocks)
        return [(patches, full), (min(window, patches), self.depth - full)]


@dataclass(frozen=True)
class Qwen2_5_VLConfig(ModelConfig):
    """The whole model."""

    model_type: ClassVar[str] = "qwen2_5_vl"

    vision: VisionConfig
    video_token_id: int = 151656
    image_token_id: int = 151655
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    bos_token_id: int = 151643
    eos_token_id: int = 151645

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "Qwen2_5_VLConfig":
        """One of `PRESETS`, with fields replaced (`swjax.models.config.from_preset`)."""
        return from_preset(PRESETS, name, **overrides)

    @classmethod
    def from_hf(cls, config: JsonView) -> "Qwen2_5_VLConfig":
        """Read the content of a Hugging Face config.json: flat (transformers 4) or nested (5).

        Raises:
            ValueError: if a key is missing, or asks for something that Qwen2.5-VL checkpoints do not use.
        """
        if config.get("model_type") != cls.model_type:
            raise ValueError(f"config.json is for model_type {config.get('model_type')!r}, expected {cls.model_type!r}")
        text = Section(config, "config.json")
        top = text
        if "text_config" in config:
            text = top.section("text_config")
        vision = top.section("vision_config")
        rope = next((text.section(key) for key in ("rope_parameters", "rope_scaling") if text.has(key)), None)
        rope = rope or Section({}, f"{text.name}: rope_scaling or rope_parameters")
        vision_rope = vision.section("rope_parameters") if vision.has("rope_parameters") else Section({}, "")
        _refuse_unsupported(text.content, vision.content, rope.content)
        colors = "in_channels" if vision.has("in_channels") else "in_chans"
        if vision.count(colors, 3) != 3:
            raise vision.refuse(colors, vision.get(colors), "3: red, green and blue")
        return cls(
            text=TextConfig(
                vocab_size=text.count("vocab_size"),
                hidden_size=text.count("hidden_size"),
                intermediate_size=text.count("intermediate_size"),
                num_layers=text.count("num_hidden_layers"),
                num_heads=text.count("num_attention_heads"),
                num_kv_heads=text.count("num_key_value_heads"),
                rms_norm_eps=text.number("rms_norm_eps"),
                rope_theta=float((rope if rope.has("rope_theta") else text).number("rope_theta")),
                mrope_section=_three(rope.counts("mrope_section"), rope.name),
                tie_word_embeddings=top.flag("tie_word_embeddings") or text.flag("tie_word_embeddings"),
                max_position_embeddings=text.count("max_position_embeddings"),
                initializer_range=text.number("initializer_range", 0.02),
            ),
            vision=VisionConfig(
                out_hidden_size=vision.count("out_hidden_size"),
                intermediate_size=vision.count("intermediate_size"),
                depth=vision.count("depth"),
                hidden_size=vision.count("hidden_size"),
                num_heads=vision.count("num_heads"),
                patch_size=vision.count("patch_size"),
                spatial_merge_size=vision.count("spatial_merge_size"),
                temporal_patch_size=vision.count("temporal_patch_size"),
                tokens_per_second=vision.number("tokens_per_second"),
                window_size=vision.count("window_size"),
                full_attention_blocks=vision.counts("fullatt_block_indexes"),
                rope_theta=float(vision_rope.number("rope_theta", 10_000.0)),
                initializer_range=vision.number("initializer_range", 0.02),
            ),
            video_token_id=top.count("video_token_id", least=0),
            image_token_id=top.count("image_token_id", least=0),
            vision_start_token_id=top.count("vision_start_token_id", least=0),
            vision_end_token_id=top.count("vision_end_token_id", least=0),
            bos_token_id=(text if text.has("bos_token_id") else top).first("bos_token_id", 151643),
            eos_token_id=(text if text.has("eos_token_id") else top).first("eos_token_id", 151645),
        )

    def to_hf(self, dtype: str) -> Json:
        """The content of a config.json in the flat form, which transformers 4 and 5 both read.

        Args:
            dtype: name of the weights' dtype, such as "bfloat16".
        """
        text, vision = self.text, self.vision
        return {
            "architectures": [ARCHITECTURE],
            "model_type": self.model_type,
            "torch_dtype": dtype,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "num_key_value_heads": text.num_kv_heads,
            "hidden_act": "silu",
            "max_position_embeddings": text.max_position_embeddings,
            "initializer_range": text.initializer_range,
            "rms_norm_eps": text.rms_norm_eps,
            "use_cache": True,
            "use_sliding_window": False,
            "tie_word_embeddings": text.tie_word_embeddings,
            "rope_theta": text.rope_theta,
            "rope_scaling": {"type": "mrope", "mrope_section": list(text.mrope_section)},
            "vision_config": {
                "depth": vision.depth,
                "hidden_act": "silu",
                "hidden_size": vision.hidden_size,
                "intermediate_size": vision.intermediate_size,
                "num_heads": vision.num_heads,
                "in_channels": len(self.geometry.pixel_mean),
                "out_hidden_size": vision.out_hidden_size,
                "patch_size": vision.patch_size,
                "spatial_merge_size": vision.spatial_merge_size,
                "temporal_patch_size": vision.temporal_patch_size,
                "tokens_per_second": vision.tokens_per_second,
                "window_size": vision.window_size,
                "fullatt_block_indexes": list(vision.full_attention_blocks),
                "initializer_range": vision.initializer_range,
            },
        }


def _three(section: tuple[int, ...], name: str) -> tuple[int, int, int]:
    if len(section) != 3:
        raise ValueError(f"{name}: mrope_section has {len(section)} parts; it must have 3: time, height and width")
    return section[0], section[1], section[2]


def _refuse_unsupported(text: JsonView, vision: JsonView, rope: JsonView) -> None:
    for where, config in (("text", text), ("vision", vision)):
        if config.get("hidden_act", "silu") != "silu":
            raise ValueError(f"{where} hidden_act {config['hidden_act']!r} is not supported; Qwen2.5-VL uses 'silu'")
    layer_types = text.get("layer_types")
    if text.get("use_sliding_window") or (isinstance(layer_types, list) and "sliding_attention" in layer_types):
        raise ValueError("use_sliding_window is not supported; released Qwen2.5-VL checkpoints do not use it")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "mrope"):
        raise ValueError(f"rope type {rope_type!r} is not supported; expected 'mrope' or 'default'")


def _released(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, **others: Any
) -> Qwen2_5_VLConfig:
    vocab_size, tied = others.get("vocab_size", 152_064), others.get("tied", False)
    return Qwen2_5_VLConfig(
        text=TextConfig(vocab_size, hidden, intermediate, layers, heads, kv_heads, tie_word_embeddings=tied),
        vision=VisionConfig(out_hidden_size=hidden, intermediate_size=others.get("vision_intermediate", 3456)),
    )


PRESETS: Mapping[str, Qwen2_5_VLConfig] = MappingProxyType(
    {
        "tiny": Qwen2_5_VLConfig(
            text=TextConfig(
                vocab_size=512,
                hidden_size=128,
                intermediate_size=384,
                num_layers=4,
                num_heads=4,
                num_kv_heads=2,
                mrope_section=(4, 6, 6),
                max_position_embeddings=32_768,
                initializer_range=0.06,
            ),
            vision=VisionConfig(
                out_hidden_size=128,
                intermediate_size=192,
                depth=2,
                hidden_size=64,
                num_heads=2,
                window_size=56,
                full_attention_blocks=(1,),
                initializer_range=0.08,
            ),
        ),
        "3b": _released(2048, 11_008, 36, 16, 2, vocab_size=151_936, tied=True, vision_intermediate=3420),
        "7b": _released(3584, 18_944, 28, 28, 4, vision_intermediate=3420),
        "32b": _released(5120, 27_648, 64, 40, 8),
        "72b": _released(8192, 29_568, 80, 64, 8),
    }
)
"""`tiny` for tests and the quickstart (set its vocabulary and special token ids), and the released sizes."""
