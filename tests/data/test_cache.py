"""The cache keeps the first, never more than it may, and starts empty in another process."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from swjax.data.cache import PatchCache


def test_keeps_the_first_that_fit():
    loaded = []

    def load(path):
        loaded.append(path.name)
        return np.full((2, 50), len(loaded), np.uint8), (1, 1, 2)

    cache = PatchCache(250)
    for _ in range(3):
        patches, grid = cache.get(Path("a"), load)
        assert (patches == 1).all()
        assert grid == (1, 1, 2)
        cache.get(Path("b"), load)
        cache.get(Path("c"), load)
    assert loaded == ["a", "b", "c", "c", "c"]
    assert cache.num_bytes == 200
    copy = pickle.loads(pickle.dumps(cache))
    assert (copy.max_bytes, copy.num_bytes) == (250, 0)


def test_errors_are_not_kept():
    cache = PatchCache(1000)

    def fail(path):
        raise ValueError(f"{path} is bad")

    for _ in range(2):
        with pytest.raises(ValueError, match="a is bad"):
            cache.get(Path("a"), fail)
    patches, _ = cache.get(Path("a"), lambda path: (np.zeros((1, 1), np.uint8), (1, 1, 1)))
    assert patches.shape == (1, 1)
