"""The vision tower of Qwen2.5-VL: patches, windowed and full attention as spans, patch merger.

Each frame (temporal grid step) is encoded on its own: the windows lie within a frame and full attention spans one
frame, so a video can be encoded frame by frame as it arrives, with the same result.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Int32, UInt8

from swjax.attention import span_attention
from swjax.models.layers import (
    Attention,
    Constrain,
    Draw,
    gated,
    normalize_pixels,
    part_of,
    project,
    rms_norm,
    scan_layers,
    stack_layers,
    unconstrained,
)
from swjax.models.picking import pick
from swjax.models.qwen2_5_vl.config import VisionConfig
from swjax.models.rotary import Rotation, planar_rotation, rotate
from swjax.streaming import Geometry, KeySpans

NORM_EPS = 1e-6


class VisionLayout(NamedTuple):
    """Where patches stand and what they see, for one row of P patches in window order.

    Attributes:
        order: from window order to the processor's order, in merge units (P / 4).
        rows, columns: place of each patch in its frame.
        window_spans, frame_spans: what a patch sees in windowed and in full attention.
    """

    order: Int32[Array, "U"]
    rows: Int32[Array, "P"]
    columns: Int32[Array, "P"]
    window_spans: KeySpans
    frame_spans: KeySpans


def vision_layout(grid_thw: Int[Array, "videos 3"], num_patches: int, config: VisionConfig) -> VisionLayout:
    """Sort patches by window and find their spans; works on traced grids, so a batch of any videos compiles once.

    Args:
        grid_thw: temporal steps and patch rows and columns of each video; (0, 0, 0) stands for no video.
        num_patches: length P of the row; patches behind the last video see only their own merge unit.
    """
    merge, unit = config.spatial_merge_size, config.spatial_merge_size**2
    window = config.window_size // merge // config.patch_size
    steps, rows, columns = grid_thw[:, 0], grid_thw[:, 1] // merge, grid_thw[:, 2] // merge
    windows_across = -(-columns // window)
    windows_a_frame = -(-rows // window) * windows_across

    index = jnp.arange(num_patches // unit, dtype=jnp.int32)
    unit_ends = jnp.cumsum(steps * rows * columns)
    # Not by halves, which is a loop of small kernels on a GPU: there are few videos.
    video = jnp.searchsorted(unit_ends, index, side="right", method="compare_all").astype(jnp.int32)
    is_padding = index >= unit_ends[-1]
    video = jnp.minimum(video, len(grid_thw) - 1)

    def before(counts: Int32[Array, "videos"]) -> Int32[Array, "U"]:
        return (jnp.cumsum(counts) - counts)[video]

    within_video = index - before(steps * rows * columns)
    frame, within_frame = jnp.divmod(within_video, jnp.maximum(rows * columns, 1)[video])
    row, column = jnp.divmod(within_frame, jnp.maximum(columns, 1)[video])
    window_in_frame = row // window * windows_across[video] + column // window
    frame_key = before(steps) + frame
    window_key = before(steps * windows_a_frame) + frame * windows_a_frame[video] + window_in_frame
    beyond = index + jnp.int32(num_patches)
    frame_key = jnp.where(is_padding, beyond, frame_key)
    window_key = jnp.where(is_padding, beyond, window_key)

    order = jnp.argsort(window_key, stable=True).astype(jnp.int32)
    patch = jnp.arange(unit, dtype=jnp.int32)
    patch_rows = (row[order, None] * merge + patch // merge).reshape(-1)
    patch_columns = (column[order, None] * merge + patch % merge).reshape(-1)
    return VisionLayout(
        order, patch_rows, patch_columns, _equal_runs(window_key[order], unit), _equal_runs(frame_key[order], unit)
    )


def _equal_runs(keys: Int32[Array, "U"], repeat: int) -> KeySpans:
    """Spans in which each element sees the run of equal keys that it is in; keys are sorted."""
    index, edge = jnp.arange(len(keys), dtype=jnp.int32), jnp.ones(1, bool)
    differs = keys[1:] != keys[:-1]
    start = jax.lax.cummax(jnp.where(jnp.concatenate([edge, differs]), index, 0))
    stop = jax.lax.cummin(jnp.where(jnp.concatenate([differs, edge]), index + 1, len(keys)), reverse=True)
    return KeySpans(*(jnp.repeat(one * repeat, repeat) for one in (start, stop)))


class VisionBlock(nnx.Module):
    """One block: attention and gated MLP, each after a norm and with a residual. Axis x is query, key, value."""

    def __init__(
        self,
        config: VisionConfig,
        *,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike,
        attention: Attention,
        constrain: Constrain,
    ):
        d, n, h, f = config.hidden_size, config.num_heads, config.head_dim, config.intermediate_size

        draw = Draw(rngs, config.initializer_range, param_dtype)
        self.head_dim = h
        self.is_split = False
        self.attention = attention
        self.constrain = constrain
        self.attention_norm_d = draw.ones(d)
        self.qkv_weight_dxnh = draw.weight(d, 3, n, h)
        self.qkv_bias_xnh = draw.zeros(3, n, h)
        self.o_weight_nhd = draw.weight(n, h, d)
        self.o_bias_d = draw.zeros(d)
        self.mlp_norm_d = draw.ones(d)
        self.gate_weight_df = draw.weight(d, f)
        self.gate_bias_f = draw.zeros(f)
        self.up_weight_df = draw.weight(d, f)
        self.up_bias_f = draw.zeros(f)
        self.down_weight_fd = draw.weight(f, d)
        self.down_bias_d = draw.zeros(d)

    def __call__(self, x: Float[Array, "B P D"], rotation: Rotation, spans: KeySpans) -> Float[Array, "B P D"]:
        """The block on rows of patches in window order.

        Heads may be wider than the configuration's, filled up with zeros (`swjax.models.parameters.widened`), the
        rotation with them; attention, which divides scores by the root of the width that it sees, is then made up for.
        """
        wider = (self.head_width / self.head_dim) ** 0.5
        with jax.named_scope("attention"):
            normed = rms_norm(x, self.attention_norm_d[...], NORM_EPS)
            q, k, v = self._queries_keys_values(normed)
            attended = self.attention(rotate(q, rotation, scale=wider), rotate(k, rotation), v, spans)
            x = x + project(attended, self.o_weight_nhd, "BPD", self.constrain) + self.o_bias_d[...]
        with jax.named_scope("mlp"):
            normed = rms_norm(x, self.mlp_norm_d[...], NORM_EPS)
            gate = project(normed, self.gate_weight_df, "BPF", self.constrain) + self.gate_bias_f[...]
            up = project(normed, self.up_weight_df, "BPF", self.constrain) + self.up_bias_f[...]
            down = project(gated(gate, up), self.down_weight_fd, "BPD", self.constrain)
            return x + down + self.down_bias_d[...]

    def _queries_keys_values(self, normed: Float[Array, "B P D"]) -> tuple[Float[Array, "B P N H"], ...]:
        if self.is_split:
            products = (
                (self.q_weight_dnh, self.q_bias_nh),
                (self.k_weight_dnh, self.k_bias_nh),
                (self.v_weight_dnh, self.v_bias_nh),
            )
            return tuple(project(normed, weight, "BPNH", self.constrain) + bias[...] for weight, bias in products)
        return tuple(
            project(normed, self.qkv_weight_dxnh, "BPNH", self.constrain, part=part) + self.qkv_bias_xnh[part]
            for part in range(3)
        )

    def split_products(self) -> None:
        """As `swjax.models.layers.SplitsProducts` says: queries, keys and values, each with a weight of its own."""
        weight, bias = self.qkv_weight_dxnh.get_value(), self.qkv_bias_xnh.get_value()
        self.q_weight_dnh, self.k_weight_dnh, self.v_weight_dnh = (
            nnx.Param(part_of(weight, part, axis=1)) for part in range(3)
        )
        self.q_bias_nh, self.k_bias_nh, self.v_bias_nh = (nnx.Param(part_of(bias, part, axis=0)) for part in range(3))
        del self.qkv_weight_dxnh, self.qkv_bias_xnh
        self.is_split = True

    @property
    def head_width(self) -> int:
        """Features of a head, those that fill it up among them."""
        return int((self.q_bias_nh if self.is_split else self.qkv_bias_xnh).shape[-1])


class PatchMerger(nnx.Module):
    """Two-layer MLP from a square of patches (m) to one token of the decoder (d)."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, param_dtype: DTypeLike, constrain: Constrain):
        m = config.hidden_size * config.spatial_merge_size**2
        draw = Draw(rngs, config.initializer_range, param_dtype)
        self.constrain = constrain
        self.norm_d = draw.ones(config.hidden_size)
        self.up_weight_mf = draw.weight(m, m)
        self.up_bias_f = draw.zeros(m)
        self.down_weight_fd = draw.weight(m, config.out_hidden_size)
        self.down_bias_d = draw.zeros(config.out_hidden_size)

    def __call__(self, x: Float[Array, "B P C"]) -> Float[Array, "B U D"]:
        """Merge each run of 4 patches into one token."""
        normed = rms_norm(x, self.norm_d[...], NORM_EPS)
        merged = normed.reshape(x.shape[0], -1, self.up_weight_mf.shape[0])
        up = project(merged, self.up_weight_mf, "BPF", self.constrain) + self.up_bias_f[...]
        hidden = jax.nn.gelu(up, approximate=False)
        return project(hidden, self.down_weight_fd, "BPD", self.constrain) + self.down_bias_d[...]


class VisionTower(nnx.Module):
    """Patch embedding, stacked blocks and merger."""

    def __init__(
        self,
        config: VisionConfig,
        geometry: Geometry,
        *,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike,
        attention: Attention = span_attention,
        constrain: Constrain = unconstrained,
        remat: str = "nothing",
    ):
        self.config, self.geometry = config, geometry
        self.constrain = constrain
        self.remat = remat
        draw = Draw(rngs, config.initializer_range, param_dtype)
        self.patch_weight_cd = draw.weight(geometry.patch_dim, config.hidden_size)

        def block(rngs: nnx.Rngs) -> VisionBlock:
            return VisionBlock(config, rngs=rngs, param_dtype=param_dtype, attention=attention, constrain=constrain)

        self.blocks = stack_layers(block, rngs, config.depth)
        self.merger = PatchMerger(config, rngs=rngs, param_dtype=param_dtype, constrain=constrain)

    def __call__(
        self,
        pixel_values: Float[Array, "B P C"] | UInt8[Array, "B P C"],
        grid_thw: Int[Array, "B videos 3"],
    ) -> Float[Array, "B U D"]:
        """Encode rows of patches.

        Args:
            pixel_values: patches in the processor's order: uint8 as decoded, or floats already normalised; or what
                `patch_features` made of them, which is known by its width. Patches behind a row's videos are padding.
            grid_thw: temporal steps and patch rows and columns of the videos of each row.

        Returns:
            One feature a merged patch (U = P / 4), in the processor's order.
        """
        if pixel_values.shape[-1] == self.config.hidden_size != self.geometry.patch_dim:
            with jax.named_scope("vision"):
                return self.merger(pixel_values.astype(self.patch_weight_cd.dtype))
        x, order, back = self._encode(pixel_values, grid_thw)
        with jax.named_scope("vision"):
            return self._reordered(self.merger(x), back, order)

    def patch_features(
        self, pixel_values: UInt8[Array, "B P C"], grid_thw: Int[Array, "B videos 3"]
    ) -> Float[Array, "B P D"]:
        """What the merger is given of each patch, in the processor's order; arguments as for encoding."""
        x, order, back = self._encode(pixel_values, grid_thw)
        units = x.reshape(x.shape[0], order.shape[1], -1)
        return self._reordered(units, back, order).reshape(x.shape)

    def _encode(
        self, pixel_values: Float[Array, "B P C"] | UInt8[Array, "B P C"], grid_thw: Int[Array, "B videos 3"]
    ) -> tuple[Float[Array, "B P D"], Int32[Array, "B U"], Int32[Array, "B U"]]:
        """Patches after the blocks, in window order, that order, and the one back."""
        config = self.config
        unit = config.spatial_merge_size**2
        num_rows, num_patches, _ = pixel_values.shape
        layout = jax.vmap(lambda grid: vision_layout(grid, num_patches, config))(grid_thw)
        dtype = self.patch_weight_cd.dtype
        with jax.named_scope("vision"):
            pixels = normalize_pixels(pixel_values, self.geometry).astype(dtype)
            x = project(pixels, self.patch_weight_cd, "BPD", self.constrain)
            units = x.reshape(num_rows, -1, unit * config.hidden_size)
            back = jnp.argsort(layout.order, axis=1)
            units = self._reordered(units, layout.order, back)
            x = self.constrain(units, "BPD").reshape(x.shape)
            rotation = planar_rotation(
                layout.rows,
                layout.columns,
                head_dim=config.head_dim,
                theta=config.rope_theta,
                width=(self.blocks[0] if isinstance(self.blocks, nnx.List) else self.blocks).head_width,
            )

            def block_step(x: Array, flagged: tuple[Bool[Array, ""], VisionBlock]) -> Array:
                is_full, block = flagged
                spans = jax.tree.map(
                    lambda frame, window: jnp.where(is_full, frame, window), layout.frame_spans, layout.window_spans
                )
                return block(x, rotation, spans)

            full = np.isin(np.arange(config.depth), config.full_attention_blocks)
            return scan_layers(block_step, x, self.blocks, full, remat=self.remat), layout.order, back

    def _reordered(
        self, units: Float[Array, "B U D"], order: Int32[Array, "B U"], back: Int32[Array, "B U"]
    ) -> Float[Array, "B U D"]:
        """Merge units in another order; divided by features, so that each device moves only what it holds."""
        found = pick(self.constrain(units, "B-E"), self.constrain(order, "B-"), self.constrain(back, "B-"))
        return self.constrain(found, "B-E")
