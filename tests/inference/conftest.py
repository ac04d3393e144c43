import pytest
from flax import nnx

from swjax.data.tokenizer import load_tokenizer
from swjax.inference import Engine
from swjax.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig
from swjax.streaming import SpecialTokens


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(None)


@pytest.fixture(scope="session")
def model(tokenizer):
    special = SpecialTokens.from_tokenizer(tokenizer)
    # Large weights, so that the answer of a model that has learned nothing still changes with what it sees.
    config = Qwen2_5_VLConfig.preset(
        "tiny",
        text={"vocab_size": len(tokenizer), "initializer_range": 0.25, "num_layers": 2},
        vision={"initializer_range": 0.15},
        video_token_id=special.video_pad,
    )
    return Qwen2_5_VL(config, rngs=nnx.Rngs(3))


@pytest.fixture(scope="session")
def engine(model):
    return Engine(model)
