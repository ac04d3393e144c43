"""A folder with the files and the fields of the hub's Qwen2.5-VL-3B-Instruct, around a model of some thousand weights.

The chat template that knows of videos stands in chat_template.json alone; the one in tokenizer_config.json joins text
and knows of tools. Embeddings are tied, the weights are bfloat16 and in two shards, and the configuration is flat.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from swjax.data.tokenizer import SHIPPED_TOKENIZER

VIDEO_TEMPLATE = (SHIPPED_TOKENIZER / "chat_template.jinja").read_text(encoding="utf-8")
"""It writes what the released one writes."""

TEXT_TEMPLATE = """\
{%- set opening = messages[0].content if messages[0].role == 'system' else 'You are a helpful assistant.' %}
{{- '<|im_start|>system\\n' + opening }}
{%- if tools %}
  {{- '\\n\\nFunctions that you may call, one JSON object a line:\\n' }}
  {%- for tool in tools %}{{- (tool | tojson) + '\\n' }}{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- for message in messages %}
  {%- if not (loop.first and message.role == 'system') %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
"""Of a text model: content is a string, and a list of parts cannot be joined to one."""

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "mrope_section": (2, 3, 3),
    "vocab_size": 512,  # more than the tokenizer has words, as in the released models
    "tie_word_embeddings": True,
}
VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 1,
    "out_hidden_size": 32,
    "full_attention_blocks": (1,),
}


def make_hub_folder(folder: Path) -> Path:
    """Write the folder; returns it."""
    import jax.numpy as jnp  # here, as conftest.py sets what jax reads once

    from swjax.hub import save_hf
    from swjax.models.family import abstract_model
    from swjax.models.parameters import split_parameters
    from swjax.models.qwen2_5_vl import Qwen2_5_VLConfig

    tokenizer = json.loads((SHIPPED_TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    special = {
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
    }
    config = Qwen2_5_VLConfig.preset("tiny", text=TEXT, vision=VISION, **special)
    rng = np.random.default_rng(5)
    parameters = {
        path: np.ones(leaf.shape, np.float32) if "norm" in path else rng.normal(0, 0.2, leaf.shape).astype(np.float32)
        for path, leaf in split_parameters(abstract_model(config))[1].items()
    }
    save_hf(parameters, folder, config=config, dtype=jnp.bfloat16, max_shard_size="80KB")
    contents = {
        "config.json": _config(config, special | {"vision_token_id": ids["<|vision_pad|>"]}),
        "generation_config.json": {
            "bos_token_id": special["bos_token_id"],
            "pad_token_id": special["bos_token_id"],
            "do_sample": True,
            "eos_token_id": [special["eos_token_id"], special["bos_token_id"]],
            "repetition_penalty": 1.05,
            "temperature": 0.000001,
            "transformers_version": "4.49.0",
        },
        "chat_template.json": {"chat_template": VIDEO_TEMPLATE},
        "preprocessor_config.json": {
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        },
        "tokenizer_config.json": _tokenizer_config(tokenizer),
        "tokenizer.json": tokenizer,
        "vocab.json": tokenizer["model"]["vocab"],
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
    merges = "".join(f"{left} {right}\n" for left, right in tokenizer["model"]["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    for name in ("README.md", "LICENSE", ".gitattributes"):
        (folder / name).write_text("as on the hub\n")
    return folder


def _config(config: Any, special: dict[str, int]) -> dict[str, Any]:
    text, vision = config.text, config.vision
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        **special,
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": text.num_heads,
        "num_hidden_layers": text.num_layers,
        "num_key_value_heads": text.num_kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": vision.depth,
            "hidden_act": "silu",
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_heads": vision.num_heads,
            "in_chans": 3,
            "out_hidden_size": vision.out_hidden_size,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": vision.window_size,
            "fullatt_block_indexes": list(vision.full_attention_blocks),
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": list(text.mrope_section)},
        "vocab_size": text.vocab_size,
    }


def _tokenizer_config(tokenizer: dict[str, Any]) -> dict[str, Any]:
    added = tokenizer["added_tokens"]
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
        },
        "additional_special_tokens": [token["content"] for token in added if token["special"]][1:],
        "bos_token": None,
        "chat_template": TEXT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
