import pytest
from serving_clients import FRAME_PIXELS, ROWS

from swjax.data.tokenizer import SHIPPED_TOKENIZER, load_tokenizer
from swjax.runs.streaming_model import StreamingModel
from swjax.serving import EngineSize, Limits, build_engine
from swjax.streaming import StreamSpec


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(None)


@pytest.fixture(scope="session")
def source(random_model):
    record = StreamSpec(min_pixels=FRAME_PIXELS, max_pixels=FRAME_PIXELS)
    return StreamingModel(random_model, SHIPPED_TOKENIZER, record)


@pytest.fixture(scope="session")
def size(source):
    return EngineSize.of(source.record, Limits(max_video_s=12), rows=ROWS, pictures=[(64, 64)])


@pytest.fixture(scope="session")
def engine(source, size, tokenizer):
    """One warm engine for all servers, one after another."""
    return build_engine(source.model, size, tokenizer)
