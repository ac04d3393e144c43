"""Qwen2.5-VL: vision tower and decoder, with position ids and key spans as inputs.

The model knows nothing of video time, variants or schedules: streaming reaches it as `position_ids` and `spans`.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int32, UInt8

from swjax.attention import span_attention
from swjax.models.cache import KeyValueCache
from swjax.models.qwen2_5_vl.config import Qwen2_5_VLConfig
from swjax.models.qwen2_5_vl.decoder import Attention, Constrain, Decoder, layers_apart, unconstrained
from swjax.models.qwen2_5_vl.vision import VisionTower
from swjax.streaming import KeySpans


class Qwen2_5_VL(nnx.Module):
    """The whole model. Parameters and computations have `param_dtype`; norms, rotary and softmax are in float32.

    Args:
        config: the sizes.
        rngs: draws the parameters.
        param_dtype: dtype of parameters and computations.
        attention: what the decoder attends with: `span_attention`, or a `swjax.attention.SpanAttention`, which names an
            implementation or divides the work over a mesh.
        vision_attention: the same for the vision tower, whose rows are patches.
        constrain: lays activations out over devices (`swjax.models.qwen2_5_vl.decoder.Constrain`).
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
        self.config = config
        self.constrain = constrain
        shared: dict[str, Any] = {"rngs": rngs, "param_dtype": param_dtype, "constrain": constrain, "remat": remat}
        self.visual = VisionTower(config.vision, attention=vision_attention, **shared)
        self.decoder = Decoder(config.text, attention=attention, **shared)

    def __call__(
        self,
        token_ids: Int32[Array, "B L"],
        position_ids: Int32[Array, "3 B L"],
        spans: KeySpans,
        *,
        pixel_values: Float[Array, "B P C"] | UInt8[Array, "B P C"] | None = None,
        video_grid_thw: Int32[Array, "B videos 3"] | None = None,
        slots: Int32[Array, "B L"] | None = None,
    ) -> Float[Array, "B L V"]:
        """Logits of every slot.

        Args:
            token_ids: in slot order, as `swjax.streaming.build_layout` gives them.
            position_ids: temporal, height and width ids.
            spans: int32[B, L] each, the slots that each query sees.
            pixel_values: rows of patches, one row a sequence: uint8 as decoded, or floats already normalised.
            video_grid_thw: temporal steps and patch rows and columns of the images and videos of each row, in slot
                order; (0, 0, 0) is none.
            slots: slot of each token, where rows are not in slot order (`swjax.attention.stripe_order`).
        """
        hidden = self.hidden(
            token_ids, position_ids, spans, pixel_values=pixel_values, video_grid_thw=video_grid_thw, slots=slots
        )
        return self.logits(hidden)

    def hidden(
        self,
        token_ids: Int32[Array, "B L"],
        position_ids: Int32[Array, "3 B L"],
        spans: KeySpans,
        *,
        pixel_values: Float[Array, "B P C"] | UInt8[Array, "B P C"] | None = None,
        video_grid_thw: Int32[Array, "B videos 3"] | None = None,
        slots: Int32[Array, "B L"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Hidden states after the last norm; arguments as for calling the model."""
        features = None
        if pixel_values is not None:
            if video_grid_thw is None:
                raise ValueError("pixel_values come with video_grid_thw, the size of their videos in patches")
            features = self.visual(pixel_values, video_grid_thw)
        return self.decoder(self.embed(token_ids, features, slots), position_ids, spans)

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Scores of the next token."""
        return self.decoder.logits(hidden)

    def head(self) -> Float[Array, "V D"]:
        """The weight of the head, whose product with hidden states is `logits`."""
        return self.decoder.head()

    def encode_video(
        self, pixel_values: Float[Array, "P C"] | UInt8[Array, "P C"], grid_thw: Int32[Array, "videos 3"]
    ) -> Float[Array, "U D"]:
        """Features of the merged patches of some videos, in the processor's order."""
        return self.visual(pixel_values[None], jnp.asarray(grid_thw)[None])[0]

    def with_layers_apart(self) -> "Qwen2_5_VL":
        """The same model with its layers as lists in the place of stacks (`layers_apart`); other weights are shared."""
        model: Any = nnx.merge(*nnx.split(self))  # lists stand where modules are declared
        model.decoder.layers, model.visual.blocks = layers_apart(self.decoder.layers), layers_apart(self.visual.blocks)
        return model

    def embed(
        self,
        token_ids: Int32[Array, "B L"],
        video_features: Float[Array, "B U D"] | None = None,
        slots: Int32[Array, "B L"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Embed tokens, with a row's image and video tokens replaced by its features in order of their slots.

        Args:
            token_ids: tokens of each row.
            video_features: features of the row's video tokens, in slot order.
            slots: slot of each token; None if tokens are in slot order.
        """
        x = self.decoder.embed(token_ids)
        if video_features is None:
            return x
        is_visual = (token_ids == self.config.video_token_id) | (token_ids == self.config.image_token_id)
        in_slot_order = is_visual if slots is None else jnp.take_along_axis(is_visual, jnp.argsort(slots), axis=1)
        index = jnp.maximum(jnp.cumsum(in_slot_order, axis=1) - 1, 0)
        if slots is not None:
            index = jnp.take_along_axis(index, slots, axis=1)
        # Divided by features, so that each device picks from what it holds.
        index = self.constrain(index, "B-")
        features = jnp.take_along_axis(self.constrain(video_features, "B-S"), index[..., None], axis=1)
        features = self.constrain(self.constrain(features, "B-S"), "BLD")
        return jnp.where(is_visual[..., None], features.astype(x.dtype), x)

    def extend(
        self,
        token_ids: Int32[Array, "B L"],
        position_ids: Int32[Array, "3 B L"],
        spans: KeySpans,
        *,
        cache: KeyValueCache,
        slots: Int32[Array, "B L"],
        video_features: Float[Array, "B U D"] | None = None,
    ) -> tuple[Float[Array, "B L D"], KeyValueCache]:
        """Run new tokens against a cache that they are written into.

        Args:
            token_ids: the new tokens.
            position_ids: their ids.
            spans: int32[B, L] each, the cache slots that each new token sees, its own among them.
            cache: keys and values of what came before.
            slots: where the new keys and values go, ascending, in at most two runs of neighbours; slots beyond the
                cache are not written and stand last.
            video_features: features of the video tokens among them, in order.

        Returns:
            Hidden states of the new tokens after the last norm, and the cache.
        """
        x = self.embed(token_ids, video_features)
        return self.decoder.extend(x, position_ids, spans, cache, slots)


def abstract_model(
    config: Qwen2_5_VLConfig,
    *,
    param_dtype: DTypeLike = jnp.float32,
    attention: Attention = span_attention,
    vision_attention: Attention = span_attention,
    constrain: Constrain = unconstrained,
    remat: str = "nothing",
) -> Qwen2_5_VL:
    """The model with shapes in the place of its parameters; arguments as for `Qwen2_5_VL`."""
    return nnx.eval_shape(
        lambda: Qwen2_5_VL(
            config,
            rngs=nnx.Rngs(0),
            param_dtype=param_dtype,
            attention=attention,
            vision_attention=vision_attention,
            constrain=constrain,
            remat=remat,
        )
    )
