"""LoRA adapters in PEFT's form, read and written, for `peft.PeftModel.from_pretrained` and servers that read its files.

A folder holds adapter_model.safetensors, whose names are those of transformers' modules (from transformers 4.52 on,
where the decoder is `model.language_model`), and adapter_config.json.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import DTypeLike
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from swjax.atomic import replacing, write_json
from swjax.hub.errors import CheckpointError
from swjax.hub.reader import read_json
from swjax.models.adapters import adapter_paths, adapter_shapes, is_adapter, magnitude_path
from swjax.models.config import ModelConfig
from swjax.models.family import family_of
from swjax.models.parameters import Leaves
from swjax.models.stored import StoredArray, in_memory
from swjax.models.weights import WeightTable
from swjax.plain import Json, JsonView
from swjax.storage import AnyPath, as_path, local_file

ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


def save_adapter(
    folder: AnyPath,
    tensors: Mapping[str, np.ndarray],
    *,
    rank: int,
    alpha: float,
    base: str | None,
    rslora: bool = False,
    dropout: float = 0.0,
    dora: bool = False,
    dtype: DTypeLike | None = None,
) -> None:
    """Write a folder that PEFT reads. Cut off, it has no adapter_config.json.

    Args:
        folder: it must be there.
        tensors: from `peft_tensors`.
        rank: of the adapters.
        alpha: their scale is alpha / rank.
        rslora: the scale is alpha / sqrt(rank) instead.
        dropout: share of their inputs that was dropped while they trained, which PEFT goes on with.
        dora: whether they have magnitudes.
        base: path or Hub id of the model that they belong to.
        dtype: of the weights; None keeps the tensors'.
    """
    (folder / ADAPTER_CONFIG).unlink(missing_ok=True)
    arrays = {name: array if dtype is None else array.astype(dtype) for name, array in tensors.items()}
    with replacing(folder / ADAPTER) as partial:
        save_file(arrays, partial, metadata={"format": "pt"})
    write_json(folder / ADAPTER_CONFIG, _adapter_config(tensors, rank, alpha, base, rslora, dropout, dora))


def peft_tensors(
    stored: Mapping[str, StoredArray], config: ModelConfig, *, additional: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """A checkpoint's adapters by PEFT's names: `lora_A` [rank, inputs], `lora_B` [outputs, rank] and, of DoRA,
    `lora_magnitude_vector` [outputs].

    Args:
        stored: the parameters of model and adapters.
        config: the model's.
        additional: paths of parameters that were trained beside them; their modules are written whole.
    """
    table = family_of(config).weights
    tensors = _whole_modules(stored, config, additional)
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
            if magnitude_path(path) in stored:
                array = stored[magnitude_path(path)]
                of_layer = array.read_rows(0, array.shape[0]) if layer is None else array.read_rows(layer, layer + 1)
                tensors[f"{name}.lora_magnitude_vector"] = np.ascontiguousarray(of_layer.reshape(-1))
    return tensors


@dataclass(frozen=True)
class Adapter:
    """An adapter in PEFT's form.

    Attributes:
        parameters: A and B by our paths, zero in layers without them, and what was trained beside them by its own.
        rank, alpha, rslora: its scale is alpha / rank, or alpha / sqrt(rank).
        dora: whether it has magnitudes.
    """

    parameters: Mapping[str, StoredArray]
    rank: int
    alpha: float
    rslora: bool
    dora: bool


def open_adapter(folder: str | AnyPath, model: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
    """Read an adapter that PEFT, LLaMA-Factory, ms-swift or `swjax export --format lora` wrote.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        model: the configuration of the model that it belongs to.
        shapes: path -> shape of the model's parameters.

    Raises:
        CheckpointError: it is not there, damaged, of another model, or of a kind that is not taken (ranks by pattern,
            biases).
    """
    folder = as_path(folder)
    config = read_json(folder / ADAPTER_CONFIG, holder="a folder of an adapter in PEFT's form")
    _refuse_kinds(folder, config)
    rank = config["r"]
    try:
        tensors = load_file(local_file(folder / ADAPTER))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / ADAPTER} cannot be read: {error}") from error
    table = family_of(model).weights
    places, whole_places = _places(table, shapes), table.hub_tensors(model, shapes)
    dora = bool(config.get("use_dora", False))
    sides = ("A", "B", "magnitude_vector")[: 2 + dora]
    found: dict[str, np.ndarray] = {}
    layers: dict[str, set[int]] = {}
    adapted: dict[str, set[int]] = {}
    for name, tensor in tensors.items():
        if ".lora_" not in name:
            where = whole_places.get(table.hub_name(name))
            if where is None or tensor.shape != where.shape:
                raise CheckpointError(f"{folder / ADAPTER} has {name} {tensor.shape}, which is nothing of this model")
            whole = found.setdefault(where.path, np.zeros(shapes[where.path], np.float32))
            ours = tensor.astype(np.float32).reshape(where.split_shape).transpose(where.to_ours)
            whole[... if where.layer is None else where.layer] = ours
            layers.setdefault(where.path, set()).add(where.layer or 0)
            continue
        module, _, side = name.removesuffix(".weight").rpartition(".lora_")
        path, layer = places.get(table.hub_name(f"{module}.weight"), ("", None))
        if side not in sides or not path:
            raise CheckpointError(f"{folder / ADAPTER} has {name}, which is of no linear layer of this model")
        ours_path = (*adapter_paths(path), magnitude_path(path))[sides.index(side)]
        shape = adapter_shapes(shapes, [path], rank, dora=dora)[ours_path]
        of_layer = shape if layer is None else shape[1:]
        # PEFT's are [rank, inputs], [outputs, rank] and [outputs]; ours are their transposes, with heads apart.
        ranks = {"A": tensor.shape[:1], "B": tensor.shape[1:]}.get(side, (rank,))
        if tensor.ndim != 1 + (side in "AB") or ranks != (rank,) or tensor.size != math.prod(of_layer):
            raise CheckpointError(f"{folder / ADAPTER}: {name} has shape {tensor.shape}, which does not fit {path}")
        whole = found.setdefault(ours_path, np.zeros(shape, np.float32))
        whole[... if layer is None else layer] = tensor.astype(np.float32).T.reshape(of_layer)
        if dora and layer is not None:  # one without a magnitude would get the length zero
            adapted.setdefault(ours_path, set()).add(layer)
    for path, numbers in layers.items():
        if any(
            where.path == path and where.layer is not None and where.layer not in numbers
            for where in whole_places.values()
        ):
            raise CheckpointError(f"{folder / ADAPTER} has {path} of some layers alone; merge it into its base")
    if lone := [path for path in found if is_adapter(path) and _sides_of(path, found) != len(sides)]:
        raise CheckpointError(f"{folder / ADAPTER} has not all of the {len(sides)} tensors of the adapter {lone[0]}")
    if part := [path for path, numbers in adapted.items() if len(numbers) != len(found[path])]:
        raise CheckpointError(f"{folder / ADAPTER} has {part[0]} of some layers alone; merge it into its base")
    parameters = {path: in_memory(array) for path, array in found.items()}
    return Adapter(parameters, rank, float(config["lora_alpha"]), bool(config.get("use_rslora", False)), dora)


def _sides_of(path: str, found: JsonView) -> int:
    """How many of A, B and magnitudes there are of the adapter that a path is of."""
    stem = re.sub(r"_lora_[abm]_\w+$", "", path)
    return sum(other.startswith(f"{stem}_lora_") for other in found)


def _places(table: WeightTable, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, int | None]]:
    """The hub's name of each linear layer's weight -> path of our parameter, and the number of the layer in it."""
    places: dict[str, tuple[str, int | None]] = {}
    for path, projection in table.projections().items():
        if path not in shapes:
            continue
        is_stacked = "*" in projection.module
        for layer in range(shapes[path][0]) if is_stacked else (None,):
            places[f"{projection.module.replace('*', str(layer))}.weight"] = path, layer
    return places


def _refuse_kinds(folder: AnyPath, config: JsonView) -> None:
    faults = [name for name in ("r", "lora_alpha") if not isinstance(config.get(name), int | float)]
    if faults or config.get("peft_type", "LORA") != "LORA":
        raise CheckpointError(f"{folder / ADAPTER_CONFIG} is of no LoRA adapter: it needs r and lora_alpha")
    others = ("rank_pattern", "alpha_pattern", "fan_in_fan_out")
    odd = [name for name in others if config.get(name)]
    if config.get("bias", "none") != "none":
        odd.append("bias")
    if odd:
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG} has {', '.join(odd)}, which is not taken here; merge the adapter into its base "
            "(PEFT's merge_and_unload) and give that folder"
        )


def _whole_modules(
    stored: Mapping[str, StoredArray], config: ModelConfig, paths: Collection[str]
) -> dict[str, np.ndarray]:
    """All tensors of the modules that some parameters belong to, as PEFT keeps `modules_to_save`."""
    table = family_of(config).weights
    places = table.hub_tensors(config, {path: array.shape for path, array in stored.items()}) if paths else {}
    modules = {name.rpartition(".")[0] for name, where in places.items() if where.path in paths}
    tensors = {}
    for name, where in places.items():
        if name.rpartition(".")[0] in modules:
            array = stored[where.path]
            ours = (
                array.read_rows(0, array.shape[0])
                if where.layer is None
                else array.read_rows(where.layer, where.layer + 1)[0]
            )
            hub = ours.astype(np.float32).transpose(np.argsort(where.to_ours)).reshape(where.shape)
            tensors[f"base_model.model.{table.module_name(name)}"] = np.ascontiguousarray(hub)
    return tensors


def _module_name(table: WeightTable, hub_name: str, layer: int | None) -> str:
    name = table.module_name(hub_name)
    return name if layer is None else name.replace("*", str(layer))


def _adapter_config(
    tensors: Leaves, rank: int, alpha: float, base: str | None, rslora: bool, dropout: float, dora: bool
) -> Json:
    """The keys of peft.LoraConfig that matter; the others have its defaults."""
    names = [name.removeprefix("base_model.model.") for name in tensors]
    modules = {name.rpartition(".lora_")[0] for name in names if ".lora_" in name}
    whole = sorted({name.rpartition(".")[0] for name in names if ".lora_" not in name})
    # An expression, and not names such as `gate_proj`, which the vision tower's layers have too.
    patterns = {re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(module)) for module in modules}
    return {
        "base_model_name_or_path": base or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": dropout,
        "modules_to_save": whole or None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": "|".join(sorted(patterns)),
        "task_type": "CAUSAL_LM",
        "use_dora": dora,
        "use_rslora": rslora,
    }
