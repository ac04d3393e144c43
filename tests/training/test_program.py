"""What a run's program is told by its configuration about attention."""

import jax
import pytest

from swjax.attention import SpanAttention
from swjax.models.qwen2_5_vl import Qwen2_5_VLConfig
from swjax.models.qwen2_5_vl.model import abstract_model
from swjax.training.config import ConfigError, base_config, check_config
from swjax.training.program import describe_attention


def test_the_start_says_which_attention_runs():
    config = base_config()
    config.data.max_tokens, config.data.max_patches = 136, 4096
    device = jax.devices("cpu")[0]
    described = describe_attention(config, device)
    assert described == "attention on cpu: reference in the decoder, chunked in the vision tower"
    config.attention = "chunked"
    assert "chunked in the decoder" in describe_attention(config, device)


def test_unknown_attention():
    config = base_config()
    config.attention = "flash"
    with pytest.raises(ConfigError, match=r"config\.attention is 'flash'; choose one of: auto, reference, chunked"):
        check_config(config)


def test_models_hold_what_they_are_given():
    decoder, vision = SpanAttention("chunked"), SpanAttention("reference")
    model = abstract_model(Qwen2_5_VLConfig.preset("tiny"), attention=decoder, vision_attention=vision)
    assert model.decoder.layers.attention == decoder
    assert model.visual.blocks.attention == vision
