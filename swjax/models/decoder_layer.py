"""The usual layer of a decoder: grouped-query attention and a gated MLP, with what its configuration asks for."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from swjax.models.config import TextConfig
from swjax.models.layers import Attention, Constrain, Draw, gated, project, rms_norm
from swjax.models.rotary import Rotation, rotate


class GatedLayer(nnx.Module):
    """Attention and gated MLP, each after a norm and with a residual.

    Args:
        config: the sizes, and whether queries and keys have biases and norms of their own.
        rngs, param_dtype, attention, constrain: as for the model.
    """

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

        draw = Draw(rngs, config.initializer_range, param_dtype)
        self.attention = attention
        self.constrain = constrain
        self.config = config
        self.is_merged = False
        self.attention_norm_d = draw.ones(d)
        self.q_weight_dnh = draw.weight(d, n, h)
        self.k_weight_dkh = draw.weight(d, k, h)
        self.v_weight_dkh = draw.weight(d, k, h)
        if config.qkv_bias:
            self.q_bias_nh, self.k_bias_kh, self.v_bias_kh = draw.zeros(n, h), draw.zeros(k, h), draw.zeros(k, h)
        if config.qk_norm:
            self.q_norm_h, self.k_norm_h = draw.ones(h), draw.ones(h)
        self.o_weight_nhd = draw.weight(n, h, d)
        self.mlp_norm_d = draw.ones(d)
        self.gate_weight_df = draw.weight(d, f)
        self.up_weight_df = draw.weight(d, f)
        self.down_weight_fd = draw.weight(f, d)

    def query_key_value(
        self, x: Float[Array, "B L D"], rotation: Rotation
    ) -> tuple[Float[Array, "B L N H"], Float[Array, "B L K H"], Float[Array, "B L K H"]]:
        """Rotated queries and keys, and values."""
        eps = self.config.rms_norm_eps
        normed = rms_norm(x, self.attention_norm_d[...], eps)
        if self.is_merged:
            ends = [self.config.num_heads, self.config.num_heads + self.config.num_kv_heads]
            heads = project(normed, self.qkv_weight_dxh, "BLXH", self.constrain)
            q, k, v = jnp.split(heads, ends, axis=2)
        else:
            q = project(normed, self.q_weight_dnh, "BLNH", self.constrain)
            k = project(normed, self.k_weight_dkh, "BLKH", self.constrain)
            v = project(normed, self.v_weight_dkh, "BLKH", self.constrain)
        if self.config.qkv_bias:
            q, k, v = q + self.q_bias_nh[...], k + self.k_bias_kh[...], v + self.v_bias_kh[...]
        if self.config.qk_norm:
            q, k = rms_norm(q, self.q_norm_h[...], eps), rms_norm(k, self.k_norm_h[...], eps)
        return rotate(q, rotation), rotate(k, rotation), v

    def finish(self, x: Float[Array, "B L D"], attended: Float[Array, "B L N H"]) -> Float[Array, "B L D"]:
        """What follows attention: its output projection and the MLP."""
        x = x + project(attended, self.o_weight_nhd, "BLD", self.constrain)
        with jax.named_scope("mlp"):
            normed = rms_norm(x, self.mlp_norm_d[...], self.config.rms_norm_eps)
            if self.is_merged:
                gate, up = jnp.split(project(normed, self.gate_up_weight_dx, "BLX", self.constrain), 2, axis=-1)
            else:
                gate = project(normed, self.gate_weight_df, "BLF", self.constrain)
                up = project(normed, self.up_weight_df, "BLF", self.constrain)
            return x + project(gated(gate, up), self.down_weight_fd, "BLD", self.constrain)

    def merge_products(self) -> None:
        """Make one weight of those of queries, keys and values, and one of the gate's and what it gates.

        Fewer and larger products are quicker where tokens are few, and each array that a program is given takes time.
        The names that conversion, training and LoRA know are gone then.
        """
        self.qkv_weight_dxh = nnx.Param(
            jnp.concatenate([self.q_weight_dnh[...], self.k_weight_dkh[...], self.v_weight_dkh[...]], axis=1)
        )
        self.gate_up_weight_dx = nnx.Param(jnp.concatenate([self.gate_weight_df[...], self.up_weight_df[...]], axis=1))
        del self.q_weight_dnh, self.k_weight_dkh, self.v_weight_dkh, self.gate_weight_df, self.up_weight_df
        self.is_merged = True
