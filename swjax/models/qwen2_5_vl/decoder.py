"""A layer of Qwen2.5-VL's decoder: grouped-query attention with biases, and a gated MLP."""

import jax
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from swjax.models.config import TextConfig
from swjax.models.layers import Attention, Constrain, Draw, project, rms_norm
from swjax.models.rotary import Rotation, rotate


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

        draw = Draw(rngs, config.initializer_range, param_dtype)
        self.attention = attention
        self.constrain = constrain
        self.eps = config.rms_norm_eps
        self.attention_norm_d = draw.ones(d)
        self.q_weight_dnh = draw.weight(d, n, h)
        self.q_bias_nh = draw.zeros(n, h)
        self.k_weight_dkh = draw.weight(d, k, h)
        self.k_bias_kh = draw.zeros(k, h)
        self.v_weight_dkh = draw.weight(d, k, h)
        self.v_bias_kh = draw.zeros(k, h)
        self.o_weight_nhd = draw.weight(n, h, d)
        self.mlp_norm_d = draw.ones(d)
        self.gate_weight_df = draw.weight(d, f)
        self.up_weight_df = draw.weight(d, f)
        self.down_weight_fd = draw.weight(f, d)

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
