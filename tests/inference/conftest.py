import pytest

from swjax.data.tokenizer import load_tokenizer
from swjax.inference import Weights


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(None)


@pytest.fixture(scope="session")
def model(random_model):
    return random_model


@pytest.fixture(scope="session")
def weights(model):
    return Weights(model)
