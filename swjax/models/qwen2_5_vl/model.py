"""Qwen2.5-VL: its vision tower and its decoder."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import DTypeLike

from swjax.attention import span_attention
from swjax.models.decoder import Decoder
from swjax.models.decoder_layer import GatedLayer
from swjax.models.layers import Attention, Constrain, unconstrained
from swjax.models.model import VideoLanguageModel
from swjax.models.qwen2_5_vl.config import Qwen2_5_VLConfig
from swjax.models.qwen2_5_vl.vision import VisionTower


class Qwen2_5_VL(VideoLanguageModel):
    """The whole model. Parameters and computations have `param_dtype`; norms, rotary and softmax are in float32.

    Args:
        config: the sizes.
        rngs: draws the parameters.
        param_dtype: dtype of parameters and computations.
        attention: what the decoder attends with: `span_attention`, or a `swjax.attention.SpanAttention`, which names an
            implementation or divides the work over a mesh.
        vision_attention: the same for the vision tower, whose rows are patches.
        constrain: lays activations out over devices (`swjax.models.layers.Constrain`).
        remat: what the backward pass computes again, one of `swjax.models.remat.REMAT`.
    """

    def __init__(
        self,
        config: Qwen2_5_VLConfig,
        *,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike = jnp.float32,
        attention: Attention = span_attention,
        vision_attention: Attention = span_attention,
        constrain: Constrain = unconstrained,
        remat: str = "nothing",
    ):
        shared: dict[str, Any] = {"param_dtype": param_dtype, "constrain": constrain}

        def layer(rngs: nnx.Rngs) -> GatedLayer:
            return GatedLayer(config.text, rngs=rngs, attention=attention, **shared)

        shared_by_stacks = {"rngs": rngs, "remat": remat, **shared}
        super().__init__(
            config,
            visual=VisionTower(config.vision, config.geometry, attention=vision_attention, **shared_by_stacks),
            decoder=Decoder(config.text, layer, **shared_by_stacks),
            constrain=constrain,
        )
