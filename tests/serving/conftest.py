import pytest
from flax import nnx
from serving_clients import FRAME_PIXELS, ROWS

from swjax.conversion.streaming_model import StreamingModel, StreamingRecord
from swjax.data.tokenizer import SHIPPED_TOKENIZER, load_tokenizer
from swjax.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig
from swjax.serving import EngineSize, Limits, build_engine
from swjax.streaming import SpecialTokens


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(None)


@pytest.fixture(scope="session")
def source(tokenizer):
    special = SpecialTokens.from_tokenizer(tokenizer)
    # Large weights, so that the answer of a model that has learned nothing still changes with what it sees.
    config = Qwen2_5_VLConfig.preset(
        "tiny",
        text={"vocab_size": len(tokenizer), "initializer_range": 0.25, "num_layers": 2},
        vision={"initializer_range": 0.15},
        video_token_id=special.video_pad,
    )
    record = StreamingRecord(min_pixels=FRAME_PIXELS, max_pixels=FRAME_PIXELS)
    return StreamingModel(Qwen2_5_VL(config, rngs=nnx.Rngs(3)), SHIPPED_TOKENIZER, record)


@pytest.fixture(scope="session")
def size(source):
    return EngineSize.of(source.record, Limits(max_video_s=12), rows=ROWS, pictures=[(64, 64)])


@pytest.fixture(scope="session")
def engine(source, size, tokenizer):
    """One warm engine for all servers, one after another."""
    return build_engine(source.model, size, tokenizer)
