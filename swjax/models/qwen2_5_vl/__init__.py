"""Qwen2.5-VL in Flax NNX, with position ids and key spans as inputs."""

from types import MappingProxyType

from swjax.models.cache import KeyValueCache
from swjax.models.config import TextConfig
from swjax.models.family import Family
from swjax.models.qwen2_5_vl.config import ARCHITECTURE, PRESETS, Qwen2_5_VLConfig, VisionConfig
from swjax.models.qwen2_5_vl.model import Qwen2_5_VL
from swjax.models.qwen2_5_vl.weights import WEIGHTS

QWEN2_5_VL = Family(
    name="Qwen2.5-VL",
    config=Qwen2_5_VLConfig,
    model=Qwen2_5_VL,
    weights=WEIGHTS,
    presets=PRESETS,
    architecture=ARCHITECTURE,
    processor=MappingProxyType(
        {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    ),
    pytorch_files=("streaming.py", "finetuning.py"),
)

__all__ = [
    "PRESETS",
    "QWEN2_5_VL",
    "KeyValueCache",
    "Qwen2_5_VL",
    "Qwen2_5_VLConfig",
    "TextConfig",
    "VisionConfig",
]
