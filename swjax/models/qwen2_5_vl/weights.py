"""Names of Qwen2.5-VL's weights on the hub, and how each maps to a parameter of ours (`swjax.models.weights`)."""

from swjax.models.weights import DECODER, WeightTable

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


def hub_name(name: str) -> str:
    """The hub's name of a tensor by the name that it was saved under: by a wrapper, or transformers' modules.

    From transformers 4.52 on, the modules are `model.language_model` and `model.visual`.
    """
    while (inner := next((name.removeprefix(prefix) for prefix in _WRAPPERS if name.startswith(prefix)), "")) != "":
        name = inner
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name.removeprefix("model.") if name.startswith("model.visual.") else name


def module_name(name: str) -> str:
    """Where a linear layer stands in transformers' model, of which the hub's names are older."""
    if name.startswith("model."):
        return "model.language_model." + name.removeprefix("model.")
    return f"model.{name}" if name.startswith("visual.") else name


WEIGHTS = WeightTable((*DECODER, *_VISION), hub_name, module_name)
