"""What the models of all families do: read token ids, position ids, key spans and patches, and score the next token.

The model knows nothing of video time, variants or schedules: streaming reaches it as `position_ids` and `spans`.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int32, UInt8

from swjax.models.cache import KeyValueCache
from swjax.models.config import ModelConfig
from swjax.models.decoder import Decoder
from swjax.models.layers import Constrain
from swjax.models.picking import pick, visual_places
from swjax.streaming import KeySpans


class VideoLanguageModel(nnx.Module):
    """A vision tower and a decoder; a family's own is a subclass that makes the two.

    Args:
        config: the sizes.
        visual: the vision tower: (pixel_values [B, P, C], grid_thw [B, videos, 3]) -> features [B, U, D]; its layers
            are stacked in `blocks`.
        decoder: the decoder.
        constrain: lays activations out over devices (`swjax.models.layers.Constrain`).
    """

    def __init__(self, config: ModelConfig, *, visual: Any, decoder: Decoder, constrain: Constrain):
        self.config = config
        self.constrain = constrain
        self.visual = visual
        self.decoder = decoder

    def __call__(
        self,
        token_ids: Int32[Array, "B L"],
        position_ids: Int32[Array, "3 B L"],
        spans: KeySpans,
        *,
        pixel_values: Float[Array, "B P C"] | UInt8[Array, "B P C"] | None = None,
        video_grid_thw: Int[Array, "B videos 3"] | None = None,
        slots: Int32[Array, "B L"] | None = None,
        kept: Bool[Array, "B P"] | None = None,
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
            kept: of which patches the rows have the tokens, where some are dropped.
        """
        visual = {"pixel_values": pixel_values, "video_grid_thw": video_grid_thw, "kept": kept}
        hidden = self.hidden(token_ids, position_ids, spans, slots=slots, **visual)
        return self.logits(hidden)

    def hidden(
        self,
        token_ids: Int32[Array, "B L"],
        position_ids: Int32[Array, "3 B L"],
        spans: KeySpans,
        *,
        pixel_values: Float[Array, "B P C"] | UInt8[Array, "B P C"] | None = None,
        video_grid_thw: Int[Array, "B videos 3"] | None = None,
        slots: Int32[Array, "B L"] | None = None,
        kept: Bool[Array, "B P"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Hidden states after the last norm, which `logits` takes.

        Args:
            token_ids: in slot order, unless `slots` says otherwise.
            position_ids: temporal, height and width ids.
            spans: int32[B, L] each, the slots that each query sees.
            pixel_values: rows of patches, one row a sequence: uint8 as decoded, or floats already normalized.
            video_grid_thw: temporal steps and patch rows and columns of the images and videos of each row, in slot
                order; (0, 0, 0) is none. Needed with `pixel_values`.
            slots: slot of each token, where rows are not in slot order.
            kept: of which patches the rows have the tokens, where some are dropped; the same for all patches of a
                token.

        Raises:
            ValueError: `pixel_values` come without `video_grid_thw`.
        """
        features = None
        if pixel_values is not None:
            if video_grid_thw is None:
                raise ValueError("pixel_values come with video_grid_thw, the size of their videos in patches")
            features = self.visual(pixel_values, video_grid_thw)
        if kept is not None:
            kept = kept[:, :: self.config.geometry.token_patches]
        return self.decoder(self.embed(token_ids, features, slots, kept), position_ids, spans)

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Scores of the next token."""
        return self.decoder.logits(hidden)

    def head(self) -> Float[Array, "V D"]:
        """The weight of the head, whose product with hidden states is `logits`."""
        return self.decoder.head()

    def encode_video(
        self, pixel_values: Float[Array, "P C"] | UInt8[Array, "P C"], grid_thw: Int[Array, "videos 3"]
    ) -> Float[Array, "U D"]:
        """Features of the merged patches of some videos, in the processor's order."""
        return self.visual(pixel_values[None], jnp.asarray(grid_thw)[None])[0]

    def embed(
        self,
        token_ids: Int32[Array, "B L"],
        video_features: Float[Array, "B U D"] | None = None,
        slots: Int32[Array, "B L"] | None = None,
        kept: Bool[Array, "B U"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Embed tokens, with a row's image and video tokens replaced by its features in order of their slots.

        Args:
            token_ids: tokens of each row.
            video_features: features of the row's video tokens, in slot order.
            slots: slot of each token; None if tokens are in slot order.
            kept: which features the row has tokens of; None for all.
        """
        x = self.decoder.embed(token_ids)
        if video_features is None:
            return x
        is_visual = (token_ids == self.config.video_token_id) | (token_ids == self.config.image_token_id)
        index, place = visual_places(is_visual, video_features.shape[1], slots=slots, kept=kept)
        # Divided by features, so that each device picks from what it holds.
        index, place = self.constrain(index, "B-"), self.constrain(place, "B-")
        features = pick(self.constrain(video_features, "B-S"), index, place)
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
