"""The decoder that all families share: a transformer that reads position ids and key spans, whole or against a cache.

The layers are stacked: each of their weights has a leading axis of layers, over which the forward pass scans. What a
layer is, its family says; `swjax.models.decoder_layer` has the usual one.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int32

from swjax.attention import cache_attention
from swjax.models.cache import KeyValueCache, runs_of
from swjax.models.config import TextConfig
from swjax.models.layers import Attention, Constrain, Draw, rms_norm, scan_layers, stack_layers, unconstrained
from swjax.models.picking import look_up
from swjax.models.rotary import Rotation
from swjax.streaming import KeySpans


@runtime_checkable
class DecoderLayer(Protocol):
    """One layer, which is an `nnx.Module`; between its two parts, the decoder attends."""

    attention: Attention

    def query_key_value(
        self, x: Float[Array, "B L D"], rotation: Rotation
    ) -> tuple[Float[Array, "B L N H"], Float[Array, "B L K H"], Float[Array, "B L K H"]]:
        """Rotated queries and keys, and values."""
        ...

    def finish(self, x: Float[Array, "B L D"], attended: Float[Array, "B L N H"]) -> Float[Array, "B L D"]:
        """What follows attention."""
        ...


class Decoder(nnx.Module):
    """Embedding, stacked layers, final norm and head.

    Args:
        config: the sizes.
        layer: makes one layer.
        rngs, param_dtype, constrain, remat: as for the model.
    """

    def __init__(
        self,
        config: TextConfig,
        layer: Callable[[nnx.Rngs], nnx.Module],
        *,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike,
        constrain: Constrain = unconstrained,
        remat: str = "nothing",
    ):
        self.config = config
        self.constrain = constrain
        self.remat = remat
        draw = Draw(rngs, config.initializer_range, param_dtype)
        self.embedding_vd = draw.weight(config.vocab_size, config.hidden_size)
        self.layers = stack_layers(layer, rngs, config.num_layers)
        self.norm_d = draw.ones(config.hidden_size)
        if not config.tie_word_embeddings:
            self.head_vd = draw.weight(config.vocab_size, config.hidden_size)

    def embed(self, token_ids: Int32[Array, "*B L"]) -> Float[Array, "*B L D"]:
        """Look tokens up."""
        found = look_up(self.embedding_vd[...], self.constrain(token_ids, "RL"))
        return self.constrain(self.constrain(found, "RLd"), "BLD")

    def head(self) -> Float[Array, "V D"]:
        """The weight of the head, whose product with hidden states is `logits`."""
        return (self.embedding_vd if self.config.tie_word_embeddings else self.head_vd)[...]

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Scores of the next token."""
        with jax.named_scope("head"):
            return jnp.einsum("...d,vd->...v", hidden, self.head())

    def __call__(
        self, x: Float[Array, "B L D"], position_ids: Int32[Array, "3 B L"], spans: KeySpans
    ) -> Float[Array, "B L D"]:
        """Run a whole sequence of embeddings.

        Args:
            x: embeddings in slot order.
            position_ids: temporal, height and width ids.
            spans: int32[B, L] each, the slots that each query sees.

        Returns:
            Hidden states after the final norm.
        """
        rotation = self.config.rotary(position_ids)

        def layer_step(x: Array, layer: DecoderLayer) -> Array:
            x = self.constrain(x, "BLD")
            with jax.named_scope("attention"):
                q, k, v = layer.query_key_value(x, rotation)
                attended = layer.attention(q, k, v, spans)
            return layer.finish(x, attended)

        with jax.named_scope("decoder"):
            x = scan_layers(layer_step, x, self.layers, remat=self.remat)
            return rms_norm(x, self.norm_d[...], self.config.rms_norm_eps)

    def extend(
        self,
        x: Float[Array, "B L D"],
        position_ids: Int32[Array, "3 B L"],
        spans: KeySpans,
        cache: KeyValueCache,
        slots: Int32[Array, "B L"],
    ) -> tuple[Float[Array, "B L D"], KeyValueCache]:
        """Run new embeddings against a cache, after writing their keys and values into it.

        Args:
            x: embeddings of the new tokens.
            position_ids: their ids.
            spans: int32[B, L] each, the cache slots that each new token sees, its own among them.
            cache: keys and values of what came before.
            slots: where the keys and values of the new tokens go, ascending, in at most two runs of neighbours; slots
                beyond the cache are not written and stand last.
        """
        rotation = self.config.rotary(position_ids)
        runs = runs_of(slots, cache.slots)

        def layer_step(
            carry: tuple[Array, KeyValueCache], indexed: tuple[Array, DecoderLayer]
        ) -> tuple[Array, KeyValueCache]:
            (x, cache), (index, layer) = carry, indexed
            with jax.named_scope("attention"):
                q, k, v = layer.query_key_value(x, rotation)
                cache = cache.write(index, runs, k, v, getattr(layer.attention, "sharding", None))
                attended = cache_attention(q, *cache, index, spans, like=layer.attention)
            return layer.finish(x, attended), cache

        with jax.named_scope("decoder"):
            index = np.arange(self.config.num_layers, dtype=np.int32)
            x, cache = scan_layers(layer_step, (x, cache), self.layers, index)
            return rms_norm(x, self.norm_d[...], self.config.rms_norm_eps), cache

    def reread(
        self, x: Float[Array, "B L D"], position_ids: Int32[Array, "3 B L"], spans: KeySpans, cache: KeyValueCache
    ) -> tuple[Float[Array, "B L D"], Float[Array, "layers B K S"]]:
        """Run tokens that are in a cache once more: what they are, and how much of their attention each slot gets.

        Args:
            x: embeddings of the tokens.
            position_ids: their ids.
            spans: int32[B, L] each, the slots that each sees.
            cache: keys and values.

        Returns:
            Hidden states after the final norm; and softmax weights, the mean over tokens and over the query heads of a
            key head: of each layer and key head their sum over slots is 1. Float32.
        """
        rotation, slots = self.config.rotary(position_ids), jnp.arange(cache.slots)
        seen = (slots >= spans.start[..., None]) & (slots < spans.stop[..., None])

        def layer_step(carry: tuple[Array, Array], indexed: tuple[Array, DecoderLayer]) -> tuple[Array, Array]:
            (x, mass), (index, layer) = carry, indexed
            q, _, _ = layer.query_key_value(x, rotation)
            keys, values = (one[index].astype(jnp.float32) for one in cache)
            batch, length, heads, width = q.shape
            grouped = q.astype(jnp.float32).reshape(batch, length, keys.shape[1], -1, width)
            scores = jnp.einsum("blkgh,bksh->bkgls", grouped, keys) / np.sqrt(width)
            weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -jnp.inf), axis=-1)
            attended = jnp.einsum("bkgls,bksh->blkgh", weights, values).reshape(batch, length, heads, width)
            return layer.finish(x, attended.astype(x.dtype)), mass.at[index].set(weights.mean(axis=(2, 3)))

        with jax.named_scope("reread"):
            index = np.arange(self.config.num_layers, dtype=np.int32)
            mass = jnp.zeros((len(index), len(x), self.config.num_kv_heads, cache.slots), jnp.float32)
            x, mass = scan_layers(layer_step, (x, mass), self.layers, index)
            return rms_norm(x, self.norm_d[...], self.config.rms_norm_eps), mass

    def queries(
        self,
        x: Float[Array, "B L D"],
        position_ids: Int32[Array, "3 B L"],
        spans: KeySpans,
        weights: Float[Array, "B L"],
    ) -> Float[Array, "layers B K H"]:
        """What a whole sequence asks for: its queries without their rotation.

        Args:
            x, position_ids, spans: as for a whole sequence.
            weights: of each token.

        Returns:
            The weighted sum over tokens, and the sum over the query heads of a key head, of each layer. Float32.
        """
        rotation, still = self.config.rotary(position_ids), self.config.rotary(jnp.zeros_like(position_ids))
        index, heads = np.arange(self.config.num_layers, dtype=np.int32), self.config.num_kv_heads

        def layer_step(carry: tuple[Array, Array], indexed: tuple[Array, DecoderLayer]) -> tuple[Array, Array]:
            (x, found), (index, layer) = carry, indexed
            plain = layer.query_key_value(x, still)[0].astype(jnp.float32)
            grouped = plain.reshape(*plain.shape[:2], heads, -1, plain.shape[-1])
            attended = layer.attention(*layer.query_key_value(x, rotation), spans)
            return layer.finish(x, attended), found.at[index].set(jnp.einsum("blkgh,bl->bkh", grouped, weights))

        with jax.named_scope("queries"):
            found = jnp.zeros((len(index), len(x), heads, self.config.head_dim), jnp.float32)
            return scan_layers(layer_step, (x, found), self.layers, index)[1]
