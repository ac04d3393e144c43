"""Names of Qwen2.5-VL's weights on the hub, and how each maps to a parameter of ours.

A row gives the hub name, our parameter's path, and the hub tensor's axes in the letters that our names spell: `nh|d` is
a matrix whose first axis holds heads and head dims together, the second the model dim.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from swjax.models.qwen2_5_vl.config import Qwen2_5_VLConfig

EMBEDDING = "model.embed_tokens.weight"
"""The hub's name of the embedding."""

_DECODER = (
    (EMBEDDING, "decoder/embedding_vd", "v|d"),
    ("model.layers.*.input_layernorm.weight", "decoder/layers/attention_norm_d", "d"),
    ("model.layers.*.self_attn.q_proj.weight", "decoder/layers/q_weight_dnh", "nh|d"),
    ("model.layers.*.self_attn.q_proj.bias", "decoder/layers/q_bias_nh", "nh"),
    ("model.layers.*.self_attn.k_proj.weight", "decoder/layers/k_weight_dkh", "kh|d"),
    ("model.layers.*.self_attn.k_proj.bias", "decoder/layers/k_bias_kh", "kh"),
    ("model.layers.*.self_attn.v_proj.weight", "decoder/layers/v_weight_dkh", "kh|d"),
    ("model.layers.*.self_attn.v_proj.bias", "decoder/layers/v_bias_kh", "kh"),
    ("model.layers.*.self_attn.o_proj.weight", "decoder/layers/o_weight_nhd", "d|nh"),
    ("model.layers.*.post_attention_layernorm.weight", "decoder/layers/mlp_norm_d", "d"),
    ("model.layers.*.mlp.gate_proj.weight", "decoder/layers/gate_weight_df", "f|d"),
    ("model.layers.*.mlp.up_proj.weight", "decoder/layers/up_weight_df", "f|d"),
    ("model.layers.*.mlp.down_proj.weight", "decoder/layers/down_weight_fd", "d|f"),
    ("model.norm.weight", "decoder/norm_d", "d"),
)
HEAD = "lm_head.weight"
"""The hub's name of the matrix that makes logits of features."""

_HEAD = ((HEAD, "decoder/head_vd", "v|d"),)
_VISION = (
    ("visual.patch_embed.proj.weight", "visual/patch_weight_cd", "d|c"),
    ("visual.blocks.*.norm1.weight", "visual/blocks/attention_norm_d", "d"),
    ("visual.blocks.*.attn.qkv.weight", "visual/blocks/qkv_weight_dxnh", "xnh|d"),
    ("visual.blocks.*.attn.qkv.bias", "visual/blocks/qkv_bias_xnh", "xnh"),
    ("visual.blocks.*.attn.proj.weight", "visual/blocks/o_weight_nhd", "d|nh"),
    ("visual.blocks.*.attn.proj.bias", "visual/blocks/o_bias_d", "d"),
    ("visual.blocks.*.norm2.weight", "visual/blocks/mlp_norm_d", "d"),
    ("visual.blocks.*.mlp.gate_proj.weight", "visual/blocks/gate_weight_df", "f|d"),
    ("visual.blocks.*.mlp.gate_proj.bias", "visual/blocks/gate_bias_f", "f"),
    ("visual.blocks.*.mlp.up_proj.weight", "visual/blocks/up_weight_df", "f|d"),
    ("visual.blocks.*.mlp.up_proj.bias", "visual/blocks/up_bias_f", "f"),
    ("visual.blocks.*.mlp.down_proj.weight", "visual/blocks/down_weight_fd", "d|f"),
    ("visual.blocks.*.mlp.down_proj.bias", "visual/blocks/down_bias_d", "d"),
    ("visual.merger.ln_q.weight", "visual/merger/norm_d", "d"),
    ("visual.merger.mlp.0.weight", "visual/merger/up_weight_mf", "f|m"),
    ("visual.merger.mlp.0.bias", "visual/merger/up_bias_f", "f"),
    ("visual.merger.mlp.2.weight", "visual/merger/down_weight_fd", "d|f"),
    ("visual.merger.mlp.2.bias", "visual/merger/down_bias_d", "d"),
)


# What wrappers leave before the names of a model that was saved with them: DDP, torch.compile, PEFT.
_WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")


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


def hub_name(name: str) -> str:
    """The hub's name of a tensor by the name that it was saved under: by a wrapper, or transformers' modules.

    From transformers 4.52 on, the modules are `model.language_model` and `model.visual`.
    """
    while (inner := next((name.removeprefix(prefix) for prefix in _WRAPPERS if name.startswith(prefix)), "")) != "":
        name = inner
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name.removeprefix("model.") if name.startswith("model.visual.") else name


def is_buffer(name: str) -> bool:
    """Whether a tensor is one that follows from the configuration, which some versions of transformers saved."""
    return name.endswith(".inv_freq")


def projections() -> dict[str, Projection]:
    """All linear layers with a matrix of their own, path of our parameter -> layer."""
    found = {}
    for name, path, hub_axes in (*_DECODER, *_HEAD, *_VISION):
        outputs, _, inputs = hub_axes.partition("|")
        if inputs and "c" not in inputs and not path.startswith("decoder/embedding"):  # c: a convolution on the hub
            found[path] = Projection(name.removesuffix(".weight"), inputs, outputs)
    return found


def hub_tensors(config: Qwen2_5_VLConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, HubTensor]:
    """Every tensor of a hub checkpoint by name.

    Args:
        config: the model's.
        shapes: shape of each of our parameters by path.
    """
    vision = config.vision
    kernel = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    tensors = {}
    for name, path, hub_axes in (*_DECODER, *(() if config.text.tie_word_embeddings else _HEAD), *_VISION):
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
