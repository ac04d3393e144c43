"""A family of models: what every other room needs to know of it, in one record, and the registry of those there are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import DTypeLike

from swjax.attention import span_attention
from swjax.models.config import ModelConfig, from_preset
from swjax.models.layers import Attention, Constrain, unconstrained
from swjax.models.model import VideoLanguageModel
from swjax.models.weights import WeightTable
from swjax.plain import JsonView


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        name: what people call it.
        config: the class of its configurations. It reads config.json and writes it (`from_hf`, `to_hf`), and says how
            pictures become tokens and where these stand (`geometry`), how positions turn keys (`text.rotary`), and
            which tokens give a chat its structure and stand for frames (`chat`).
        model: builds one: (config, *, rngs, param_dtype, attention, vision_attention, constrain, remat) -> model.
        weights: its weights' names on the hub.
        presets: its named sizes.
        architecture: its class in transformers; "" if that has none.
        processor: keys of preprocessor_config.json by which transformers chooses its processor.
        pytorch_files: files of `swjax/hub/pytorch` that know the family; they stand beside its exported weights.
    """

    name: str
    config: type[ModelConfig]
    model: Callable[..., VideoLanguageModel]
    weights: WeightTable
    presets: Mapping[str, ModelConfig] = field(default_factory=lambda: MappingProxyType({}))
    architecture: str = ""
    processor: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    pytorch_files: tuple[str, ...] = ()


_FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> None:
    """Add a family to those whose checkpoints and presets can be used.

    Raises:
        ValueError: if another one has its `model_type` or the name of one of its presets.
    """
    taken = {family.config.model_type} & set(_FAMILIES) | set(family.presets) & set(_presets())
    if taken and _FAMILIES.get(family.config.model_type) != family:
        raise ValueError(f"a family that is registered already has the name {', '.join(sorted(taken))}; choose another")
    _FAMILIES[family.config.model_type] = family


def family_of(config: ModelConfig) -> Family:
    """The family of a configuration.

    Raises:
        ValueError: if it is not registered.
    """
    return _find(config.model_type)


def read_model_config(content: JsonView) -> ModelConfig:
    """Read the content of a config.json of any family.

    Raises:
        ValueError: if its `model_type` is of no family, or its family cannot read it.
    """
    return _find(content.get("model_type")).config.from_hf(content)


def preset_config(name: str, **overrides: Any) -> ModelConfig:
    """A named size of any family, with fields replaced (`swjax.models.config.from_preset`).

    Raises:
        ValueError: if the name or a field is unknown.
    """
    return from_preset(_presets(), name, **overrides)


def abstract_model(
    config: ModelConfig,
    *,
    param_dtype: DTypeLike = jnp.float32,
    attention: Attention = span_attention,
    vision_attention: Attention = span_attention,
    constrain: Constrain = unconstrained,
    remat: str = "nothing",
) -> VideoLanguageModel:
    """The model of a configuration with shapes in the place of its parameters.

    Args:
        config: the sizes.
        param_dtype: dtype of parameters and computations.
        attention, vision_attention: what decoder and vision tower attend with (`swjax.models.layers.Attention`).
        constrain: lays activations out over devices.
        remat: what the backward pass computes again, one of `swjax.models.remat.REMAT`.
    """
    build = family_of(config).model
    return nnx.eval_shape(
        lambda: build(
            config,
            rngs=nnx.Rngs(0),
            param_dtype=param_dtype,
            attention=attention,
            vision_attention=vision_attention,
            constrain=constrain,
            remat=remat,
        )
    )


def _find(model_type: object) -> Family:
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        raise ValueError(
            f"model_type is {model_type!r}, expected {' or '.join(map(repr, _FAMILIES))} "
            "(swjax.models.register_family adds a family)"
        )
    return _FAMILIES[model_type]


def _presets() -> dict[str, ModelConfig]:
    return {name: config for family in _FAMILIES.values() for name, config in family.presets.items()}
