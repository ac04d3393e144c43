"""Names of weights on the hub, and how each maps to a parameter of ours: what a family's table says, and its reading.

A row gives the hub name, our parameter's path, and the hub tensor's axes in the letters that our names spell: `nh|d` is
a matrix whose first axis holds heads and head dims together, the second the model dim.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from swjax.models.config import ModelConfig, TextConfig

EMBEDDING = "model.embed_tokens.weight"
"""The hub's name of the embedding."""

HEAD = "lm_head.weight"
"""The hub's name of the matrix that makes logits of features."""

DECODER = (
    (EMBEDDING, "decoder/embedding_vd", "v|d"),
    ("model.layers.*.input_layernorm.weight", "decoder/layers/attention_norm_d", "d"),
    ("model.layers.*.self_attn.q_proj.weight", "decoder/layers/q_weight_dnh", "nh|d"),
    ("model.layers.*.self_attn.q_proj.bias", "decoder/layers/q_bias_nh", "nh"),
    ("model.layers.*.self_attn.k_proj.weight", "decoder/layers/k_weight_dkh", "kh|d"),
    ("model.layers.*.self_attn.k_proj.bias", "decoder/layers/k_bias_kh", "kh"),
    ("model.layers.*.self_attn.v_proj.weight", "decoder/layers/v_weight_dkh", "kh|d"),
    ("model.layers.*.self_attn.v_proj.bias", "decoder/layers/v_bias_kh", "kh"),
    ("model.layers.*.self_attn.q_norm.weight", "decoder/layers/q_norm_h", "h"),
    ("model.layers.*.self_attn.k_norm.weight", "decoder/layers/k_norm_h", "h"),
    ("model.layers.*.self_attn.o_proj.weight", "decoder/layers/o_weight_nhd", "d|nh"),
    ("model.layers.*.post_attention_layernorm.weight", "decoder/layers/mlp_norm_d", "d"),
    ("model.layers.*.mlp.gate_proj.weight", "decoder/layers/gate_weight_df", "f|d"),
    ("model.layers.*.mlp.up_proj.weight", "decoder/layers/up_weight_df", "f|d"),
    ("model.layers.*.mlp.down_proj.weight", "decoder/layers/down_weight_fd", "d|f"),
    ("model.norm.weight", "decoder/norm_d", "d"),
    (HEAD, "decoder/head_vd", "v|d"),
)
"""Rows of the shared decoder with its usual layer, under the names that Qwen2 and those after it share."""


@dataclass(frozen=True)
class HubTensor:
    """Where a tensor of a hub checkpoint belongs.

    Attributes:
        path: path of our parameter.
        layer: index along the parameter's leading axis of layers; None if it is not stacked.
        shape: shape of the tensor on the hub.
        split_shape: the same with one axis for each letter.
        to_ours: permutation from the split axes to the parameter's.
    """

    path: str
    layer: int | None
    shape: tuple[int, ...]
    split_shape: tuple[int, ...]
    to_ours: tuple[int, ...]


@dataclass(frozen=True)
class Projection:
    """A linear layer's matrix, beside which an adapter can stand.

    Attributes:
        module: the layer's name on the hub, with `*` for the number of the layer.
        inputs: letters of our axes that are contracted.
        outputs: letters of our axes that remain.
    """

    module: str
    inputs: str
    outputs: str


def _same(name: str) -> str:
    return name


@dataclass(frozen=True)
class WeightTable:
    """The weights of a family.

    Attributes:
        rows: hub name, with `*` for the number of a layer; path of our parameter; axes of the hub's tensor. Those of
            `DECODER` that a configuration has no parameter for are left out.
        hub_name: the hub's name of a tensor by the name that it was saved under, which may be that of a wrapper.
        module_name: where a linear layer stands in transformers' model, by its name on the hub.
    """

    rows: tuple[tuple[str, str, str], ...]
    hub_name: Callable[[str], str] = _same
    module_name: Callable[[str], str] = _same

    def projections(self) -> dict[str, Projection]:
        """All linear layers with a matrix of their own, path of our parameter -> layer."""
        found = {}
        for name, path, hub_axes in self.rows:
            outputs, _, inputs = hub_axes.partition("|")
            if inputs and "c" not in inputs and not path.startswith("decoder/embedding"):  # c: a convolution on the hub
                found[path] = Projection(name.removesuffix(".weight"), inputs, outputs)
        return found

    def hub_tensors(self, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, HubTensor]:
        """Every tensor of a hub checkpoint by name.

        Args:
            config: the model's.
            shapes: shape of each of our parameters by path.
        """
        geometry, patch = config.geometry, config.geometry.patch_size
        kernel = (len(geometry.pixel_mean), geometry.temporal_patch_size, patch, patch)
        absent = _absent(config.text)
        tensors = {}
        for name, path, hub_axes in self.rows:
            if path in absent:
                continue
            our_axes = path.rsplit("_", 1)[1]
            stacked = "*" in name
            sizes = dict(zip(our_axes, shapes[path][stacked:], strict=True))
            letters = hub_axes.replace("|", "")
            shape: tuple[int, ...] = tuple(math.prod(sizes[a] for a in group) for group in hub_axes.split("|"))
            if "c" in hub_axes:
                shape = (*shape[:-1], *kernel)
            split_shape = tuple(sizes[a] for a in letters)
            to_ours = tuple(letters.index(a) for a in our_axes)
            for layer in range(shapes[path][0]) if stacked else (None,):
                full_name = name if layer is None else name.replace("*", str(layer))
                tensors[full_name] = HubTensor(path, layer, shape, split_shape, to_ours)
        return tensors


def _absent(text: TextConfig) -> set[str]:
    """Parameters that the decoder has by other configurations alone."""
    optional = {
        "decoder/head_vd": not text.tie_word_embeddings,
        **dict.fromkeys((f"decoder/layers/{name}" for name in ("q_bias_nh", "k_bias_kh", "v_bias_kh")), text.qkv_bias),
        **dict.fromkeys((f"decoder/layers/{name}" for name in ("q_norm_h", "k_norm_h")), text.qk_norm),
    }
    return {path for path, is_there in optional.items() if not is_there}


def is_buffer(name: str) -> bool:
    """Whether a tensor is one that follows from the configuration, which some versions of transformers saved."""
    return name.endswith(".inv_freq")
