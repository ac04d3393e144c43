"""LoRA adapters written as PEFT writes them, for `peft.PeftModel.from_pretrained` and for servers that read its files.

A folder holds adapter_model.safetensors, whose names are those of transformers' modules (from transformers 4.52 on,
where the decoder is `model.language_model`), and adapter_config.json.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import DTypeLike
from safetensors.numpy import save_file

from swjax.atomic import replacing
from swjax.hub.writer import write_json
from swjax.models.adapters import adapter_paths
from swjax.models.stored import StoredArray
from swjax.models.weights import WeightTable
from swjax.storage import AnyPath

ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


def save_adapter(
    folder: AnyPath,
    tensors: Mapping[str, np.ndarray],
    *,
    rank: int,
    alpha: float,
    base: str | None,
    dtype: DTypeLike | None = None,
) -> None:
    """Write a folder that PEFT reads. Cut off, it has no adapter_config.json.

    Args:
        folder: it must be there.
        tensors: from `peft_tensors`.
        rank: of the adapters.
        alpha: their scale is alpha / rank.
        base: path or Hub id of the model that they belong to.
        dtype: of the weights; None keeps the tensors'.
    """
    (folder / ADAPTER_CONFIG).unlink(missing_ok=True)
    arrays = {name: array if dtype is None else array.astype(dtype) for name, array in tensors.items()}
    with replacing(folder / ADAPTER) as partial:
        save_file(arrays, partial, metadata={"format": "pt"})
    write_json(folder / ADAPTER_CONFIG, _adapter_config(tensors, rank, alpha, base))


def peft_tensors(stored: Mapping[str, StoredArray], table: WeightTable) -> dict[str, np.ndarray]:
    """A checkpoint's adapters by PEFT's names: `lora_A` [rank, inputs] and `lora_B` [outputs, rank]."""
    tensors: dict[str, np.ndarray] = {}
    for path, projection in table.projections().items():
        if path not in stored or adapter_paths(path)[0] not in stored:
            continue
        a, b = (stored[name].read_rows(0, stored[name].shape[0]) for name in adapter_paths(path))
        is_stacked = "*" in projection.module
        for layer in range(a.shape[0]) if is_stacked else (None,):
            down, up = (a, b) if layer is None else (a[layer], b[layer])
            name = f"base_model.model.{_module_name(table, projection.module, layer)}"
            rank = down.shape[-1]
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(down.reshape(-1, rank).T)
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(up.reshape(rank, -1).T)
    return tensors


def _module_name(table: WeightTable, hub_name: str, layer: int | None) -> str:
    name = table.module_name(hub_name)
    return name if layer is None else name.replace("*", str(layer))


def _adapter_config(tensors: Mapping[str, Any], rank: int, alpha: float, base: str | None) -> dict[str, Any]:
    """The keys of peft.LoraConfig that matter; the others have its defaults."""
    modules = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in tensors}
    # An expression, and not names such as `gate_proj`, which the vision tower's layers have too.
    patterns = {re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(module)) for module in modules}
    return {
        "base_model_name_or_path": base or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": "|".join(sorted(patterns)),
        "task_type": "CAUSAL_LM",
        "use_rslora": False,
    }
