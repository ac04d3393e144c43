"""The decoder of Qwen2.5-VL: a transformer with M-RoPE, grouped-query span attention and a gated MLP.

Names of weights spell their axes: d model, n heads, k key-value heads, h head dim, f feed-forward, v vocabulary. The
layers are stacked: each of their weights has a leading axis of layers, over which the forward pass scans.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, DTypeLike, Float, Int32

from swjax.attention import cache_attention, span_attention
from swjax.models.cache import KeyValueCache, runs_of
from swjax.models.qwen2_5_vl.config import TextConfig
from swjax.models.qwen2_5_vl.rotary import Rotation, multimodal_rotation, rotate
from swjax.models.remat import PROJECTION, rematerialized
from swjax.streaming import KeySpans

UNROLLED_LAYERS = 8

Attention = Callable[[Array, Array, Array, KeySpans], Array]
"""What a model attends with: `span_attention`, or a `SpanAttention`. Hashable, as it is part of the structure."""

Constrain = Callable[[Array, str], Array]
"""Lays an activation out over devices, given a letter for each of its axes; hashable. The model says what its axes are,
and whoever trains it, where they go: B rows, L slots, P patches or merged patches, D model, N heads, K key-value heads,
F feed-forward, V vocabulary. Around a look-up along an axis that may be divided, other axes are asked for: R is the
rows and d the features of tokens looked up in the embedding, S the features where slots are filled or picked out, E
those where patches are; - is never divided.
"""


def unconstrained(x: Array, axes: str) -> Array:
    """Leaves an activation where it is: for one device, or for the compiler to choose."""
    return x


def rms_norm(x: Float[Array, "*B D"], scale_d: Float[Array, "D"], eps: float) -> Float[Array, "*B D"]:
    """Root-mean-square normalisation in float32; returns the dtype of x."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return scale_d * normed.astype(x.dtype)


def project(
    x: Float[Array, "B L *D"], weight: Float[Array, "*weight"], axes: str, constrain: Constrain = unconstrained
) -> Float[Array, "B L *F"]:
    """Contract the last axes of x with the first ones of a weight.

    On one device as one product of two matrices: the weight gradient of a product of three axes and more takes XLA
    twice as long on a CPU. Where rows and slots are divided over devices they stay two axes, as one axis of both could
    not be laid out.

    Args:
        x: rows, slots or patches, and the axes to contract.
        weight: the axes to contract, and those of the result.
        axes: a letter for each axis of the result.
        constrain: lays the result out.
    """
    contracted = weight.ndim - (len(axes) - 2)
    if constrain is unconstrained:
        rows, inputs = math.prod(x.shape[:2]), math.prod(weight.shape[:contracted])
        product = x.reshape(rows, inputs) @ weight.reshape(inputs, -1)
        product = product.reshape(*x.shape[:2], *weight.shape[contracted:])
    else:
        product = constrain(jnp.tensordot(x, weight, axes=contracted), axes)
    return checkpoint_name(product, PROJECTION)


def scan_layers(
    step: Callable[..., Any], carry: Any, layers: Any, each: np.ndarray | None = None, *, remat: str = "nothing"
) -> Any:
    """Run layers one after another; few stacked ones are unrolled, which is quicker than a loop on a CPU.

    Args:
        step: (carry, layer) -> carry; with `each`, (carry, (its element, layer)) -> carry.
        carry: what goes through the layers.
        layers: a pytree whose leaves have a leading axis of layers, or a list of layers (`layers_apart`).
        each: something for each layer.
        remat: what the backward pass computes again, one of `swjax.models.remat.REMAT`.
    """
    step = rematerialized(step, remat)
    if isinstance(layers, nnx.List):
        for index, layer in enumerate(layers):
            carry = step(carry, layer if each is None else (each[index], layer))
        return carry
    num_layers = jax.tree.leaves(layers)[0].shape[0]
    unroll = num_layers if num_layers <= UNROLLED_LAYERS and remat == "nothing" else 1
    scanned = layers if each is None else (jnp.asarray(each), layers)
    return jax.lax.scan(lambda carry, layer: (step(carry, layer), None), carry, scanned, unroll=unroll)[0]


def layers_apart(layers: nnx.Module) -> nnx.List:
    """Stacked layers as a list, each with arrays of its own.

    To run one layer of a stack, XLA copies its weights out of it first on a CPU, which takes longer than a decode step.
    """

    def pick(leaf: Any, index: int) -> Any:
        is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) if is_shape else leaf[index]

    leaves, structure = jax.tree.flatten(layers)
    picked = ([pick(leaf, index) for leaf in leaves] for index in range(leaves[0].shape[0]))
    return nnx.List([jax.tree.unflatten(structure, layer) for layer in picked])


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], stddev: float, dtype: DTypeLike) -> nnx.Param:
    """A parameter drawn from a normal distribution."""
    return nnx.Param(nnx.initializers.normal(stddev)(rngs.params(), shape, dtype))


class DecoderLayer(nnx.Module):
    """One decoder layer: attention and gated MLP, each after a norm and with a residual."""

    def __init__(
        self, config: TextConfig, *, rngs: nnx.Rngs, param_dtype: DTypeLike, attention: Attention, constrain: Constrain
    ):
        d, n, k, h, f = (
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.intermediate_size,
        )

        def weight(*shape: int) -> nnx.Param:
            return normal(rngs, shape, config.initializer_range, param_dtype)

        def zeros(*shape: int) -> nnx.Param:
            return nnx.Param(jnp.zeros(shape, param_dtype))

        self.attention = attention
        self.constrain = constrain
        self.eps = config.rms_norm_eps
        self.attention_norm_d = nnx.Param(jnp.ones(d, param_dtype))
        self.q_weight_dnh = weight(d, n, h)
        self.q_bias_nh = zeros(n, h)
        self.k_weight_dkh = weight(d, k, h)
        self.k_bias_kh = zeros(k, h)
        self.v_weight_dkh = weight(d, k, h)
        self.v_bias_kh = zeros(k, h)
        self.o_weight_nhd = weight(n, h, d)
        self.mlp_norm_d = nnx.Param(jnp.ones(d, param_dtype))
        self.gate_weight_df = weight(d, f)
        self.up_weight_df = weight(d, f)
        self.down_weight_fd = weight(f, d)

    def query_key_value(
        self, x: Float[Array, "B L D"], rotation: Rotation
    ) -> tuple[Float[Array, "B L N H"], Float[Array, "B L K H"], Float[Array, "B L K H"]]:
        """Rotated queries and keys, and values."""
        normed = rms_norm(x, self.attention_norm_d[...], self.eps)
        q = project(normed, self.q_weight_dnh[...], "BLNH", self.constrain) + self.q_bias_nh[...]
        k = project(normed, self.k_weight_dkh[...], "BLKH", self.constrain) + self.k_bias_kh[...]
        v = project(normed, self.v_weight_dkh[...], "BLKH", self.constrain) + self.v_bias_kh[...]
        return rotate(q, rotation), rotate(k, rotation), v

    def finish(self, x: Float[Array, "B L D"], attended: Float[Array, "B L N H"]) -> Float[Array, "B L D"]:
        """What follows attention: its output projection and the MLP."""
        x = x + project(attended, self.o_weight_nhd[...], "BLD", self.constrain)
        with jax.named_scope("mlp"):
            normed = rms_norm(x, self.mlp_norm_d[...], self.eps)
            gate = jax.nn.silu(project(normed, self.gate_weight_df[...], "BLF", self.constrain))
            up = project(normed, self.up_weight_df[...], "BLF", self.constrain)
            return x + project(gate * up, self.down_weight_fd[...], "BLD", self.constrain)

    def __call__(self, x: Float[Array, "B L D"], rotation: Rotation, spans: KeySpans) -> Float[Array, "B L D"]:
        """The layer on a whole sequence."""
        with jax.named_scope("attention"):
            q, k, v = self.query_key_value(x, rotation)
            attended = self.attention(q, k, v, spans)
        return self.finish(x, attended)


class Decoder(nnx.Module):
    """Embedding, stacked layers, final norm and head."""

    def __init__(
        self,
        config: TextConfig,
        *,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike,
        attention: Attention = span_attention,
        constrain: Constrain = unconstrained,
        remat: str = "nothing",
    ):
        self.config = config
        self.constrain = constrain
        self.remat = remat
        self.embedding_vd = normal(rngs, (config.vocab_size, config.hidden_size), config.initializer_range, param_dtype)

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> DecoderLayer:
            return DecoderLayer(config, rngs=rngs, param_dtype=param_dtype, attention=attention, constrain=constrain)

        self.layers = stack(rngs)
        self.norm_d = nnx.Param(jnp.ones(config.hidden_size, param_dtype))
        if not config.tie_word_embeddings:
            self.head_vd = normal(rngs, (config.vocab_size, config.hidden_size), config.initializer_range, param_dtype)

    def embed(self, token_ids: Int32[Array, "*B L"]) -> Float[Array, "*B L D"]:
        """Look tokens up."""
        found = self.embedding_vd[...][self.constrain(token_ids, "RL")]
        return self.constrain(self.constrain(found, "RLd"), "BLD")

    def head(self) -> Float[Array, "V D"]:
        """The weight of the head, whose product with hidden states is `logits`."""
        return (self.embedding_vd if self.config.tie_word_embeddings else self.head_vd)[...]

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Scores of the next token."""
        with jax.named_scope("head"):
            return jnp.einsum("...d,vd->...v", hidden, self.head())

    def _rotation(self, position_ids: Int32[Array, "3 B L"]) -> Rotation:
        config = self.config
        return multimodal_rotation(
            position_ids, head_dim=config.head_dim, theta=config.rope_theta, sections=config.mrope_section
        )

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
        rotation = self._rotation(position_ids)

        with jax.named_scope("decoder"):
            x = scan_layers(lambda x, layer: layer(x, rotation, spans), x, self.layers, remat=self.remat)
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
        rotation = self._rotation(position_ids)
        runs = runs_of(slots, cache.slots)

        def layer_step(
            carry: tuple[Array, KeyValueCache], indexed: tuple[Array, DecoderLayer]
        ) -> tuple[Array, KeyValueCache]:
            (x, cache), (index, layer) = carry, indexed
            with jax.named_scope("attention"):
                q, k, v = layer.query_key_value(x, rotation)
                cache = cache.write(index, runs, k, v)
                attended = cache_attention(q, *cache, index, spans, like=layer.attention)
            return layer.finish(x, attended), cache

        with jax.named_scope("decoder"):
            index = np.arange(self.config.num_layers, dtype=np.int32)
            x, cache = scan_layers(layer_step, (x, cache), self.layers, index)
            return rms_norm(x, self.norm_d[...], self.config.rms_norm_eps), cache
