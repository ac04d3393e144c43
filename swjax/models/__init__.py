"""Models in Flax NNX, one folder a family; the list of families stands here, one row each."""

from swjax.models.config import ModelConfig
from swjax.models.family import Family, family_of, register_family
from swjax.models.model import VideoLanguageModel
from swjax.models.qwen2_5_vl import QWEN2_5_VL

for _family in (QWEN2_5_VL,):
    register_family(_family)

__all__ = ["Family", "ModelConfig", "VideoLanguageModel", "family_of", "register_family"]
