"""Qwen2.5-VL in Flax NNX, with position ids and key spans as inputs."""

from swjax.models.cache import KeyValueCache
from swjax.models.qwen2_5_vl.config import PRESETS, Qwen2_5_VLConfig, TextConfig, VisionConfig
from swjax.models.qwen2_5_vl.model import Qwen2_5_VL

__all__ = ["PRESETS", "KeyValueCache", "Qwen2_5_VL", "Qwen2_5_VLConfig", "TextConfig", "VisionConfig"]
