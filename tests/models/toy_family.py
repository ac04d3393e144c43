"""A family that somebody else adds: its decoder is Qwen3-VL's in miniature, its tower looks at each patch alone.

All of it stands here: what `config`, `model`, `weights` and `chat` are to the rest of swjax, and nothing else.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

import jax
from flax import nnx

from swjax.attention import span_attention
from swjax.models.config import ModelConfig, TextConfig, VisionConfig
from swjax.models.decoder import Decoder
from swjax.models.decoder_layer import GatedLayer
from swjax.models.family import Family
from swjax.models.layers import Draw, normalize_pixels, project, rms_norm, scan_layers, stack_layers, unconstrained
from swjax.models.model import VideoLanguageModel
from swjax.models.weights import DECODER, WeightTable
from swjax.streaming import ChatRule, Geometry

NORM_EPS = 1e-6


@dataclass(frozen=True)
class ToyText(TextConfig):
    head_dim: int = 16
    qkv_bias: bool = False
    qk_norm: bool = True
    mrope_interleaved: bool = True


@dataclass(frozen=True)
class ToyVision(VisionConfig):
    patch_size: int = 8
    spatial_merge_size: int = 3
    temporal_patch_size: int = 1
    tokens_per_second: float = 3


@dataclass(frozen=True)
class ToyConfig(ModelConfig):
    model_type: ClassVar[str] = "toy_vl"
    chat: ClassVar[ChatRule] = ChatRule(
        "<turn>", "</turn>", "<see>", "</see>", "<video>", "<image>", system_prompt="", name="Toy"
    )

    text: ToyText
    vision: ToyVision
    video_token_id: int = 0
    image_token_id: int = 0
    vision_start_token_id: int = 0
    vision_end_token_id: int = 0
    bos_token_id: int = 0
    eos_token_id: int = 0

    @property
    def geometry(self) -> Geometry:
        return replace(super().geometry, pixel_mean=(0.5, 0.4, 0.3), pixel_std=(0.5, 0.6, 0.7))

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "ToyConfig":
        text = config["text_config"]
        text = ToyText(**text | {"mrope_section": tuple(text["mrope_section"])})
        ids = {name: config[name] for name in config if name.endswith("_token_id")}
        return cls(text=text, vision=ToyVision(**config["vision_config"]), **ids)

    def to_hf(self, dtype: str) -> dict[str, Any]:
        content = asdict(self)
        sizes = {f"{part}_config": content.pop(part) for part in ("text", "vision")}
        return {"model_type": self.model_type, "torch_dtype": dtype, **sizes, **content}


class Block(nnx.Module):
    def __init__(self, config: ToyVision, draw: Draw, constrain):
        self.constrain = constrain
        self.norm_d = draw.ones(config.hidden_size)
        self.up_weight_df = draw.weight(config.hidden_size, config.intermediate_size)
        self.down_weight_fd = draw.weight(config.intermediate_size, config.hidden_size)

    def __call__(self, x):
        up = project(rms_norm(x, self.norm_d[...], NORM_EPS), self.up_weight_df, "BPF", self.constrain)
        return x + project(jax.nn.silu(up), self.down_weight_fd, "BPD", self.constrain)


class Tower(nnx.Module):
    def __init__(self, config: ToyConfig, *, rngs, param_dtype, constrain, remat):
        vision = config.vision
        self.geometry, self.constrain, self.remat = config.geometry, constrain, remat
        draw = Draw(rngs, config.text.initializer_range, param_dtype)
        self.patch_weight_cd = draw.weight(self.geometry.patch_dim, vision.hidden_size)
        self.blocks = stack_layers(lambda rngs: Block(vision, replace(draw, rngs=rngs), constrain), rngs, vision.depth)
        merged = vision.hidden_size * self.geometry.token_patches
        self.merger_weight_md = draw.weight(merged, vision.out_hidden_size)

    def __call__(self, pixel_values, grid_thw):
        pixels = normalize_pixels(pixel_values, self.geometry).astype(self.patch_weight_cd.dtype)
        x = project(pixels, self.patch_weight_cd, "BPD", self.constrain)
        x = scan_layers(lambda x, block: block(x), x, self.blocks, remat=self.remat)
        x = x.reshape(x.shape[0], -1, self.merger_weight_md.shape[0])
        return project(x, self.merger_weight_md, "BPD", self.constrain)


class ToyModel(VideoLanguageModel):
    def __init__(
        self,
        config: ToyConfig,
        *,
        rngs,
        param_dtype="float32",
        attention=span_attention,
        vision_attention=span_attention,
        constrain=unconstrained,
        remat="nothing",
    ):
        shared: dict[str, Any] = {"param_dtype": param_dtype, "constrain": constrain}

        def layer(rngs: nnx.Rngs) -> GatedLayer:
            return GatedLayer(config.text, rngs=rngs, attention=attention, **shared)

        super().__init__(
            config,
            visual=Tower(config, rngs=rngs, remat=remat, **shared),
            decoder=Decoder(config.text, layer, rngs=rngs, remat=remat, **shared),
            constrain=constrain,
        )


WEIGHTS = WeightTable(
    (
        *DECODER,
        ("visual.patch_embed.weight", "visual/patch_weight_cd", "d|c"),
        ("visual.blocks.*.norm.weight", "visual/blocks/norm_d", "d"),
        ("visual.blocks.*.up.weight", "visual/blocks/up_weight_df", "f|d"),
        ("visual.blocks.*.down.weight", "visual/blocks/down_weight_fd", "d|f"),
        ("visual.merger.weight", "visual/merger_weight_md", "d|m"),
    )
)

SMALL = ToyConfig(
    text=ToyText(
        vocab_size=512,
        hidden_size=24,
        intermediate_size=40,
        num_layers=2,
        num_heads=3,
        num_kv_heads=1,
        mrope_section=(4, 2, 2),
        initializer_range=0.3,
    ),
    vision=ToyVision(out_hidden_size=24, intermediate_size=20, depth=2, hidden_size=16, num_heads=1),
)

TOY = Family("Toy", ToyConfig, ToyModel, WEIGHTS, presets=MappingProxyType({"small_toy": SMALL}))
