"""Weights read out of buckets by byte ranges, and what is not whole there."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from swjax.commands.main import main
from swjax.hub.errors import CheckpointError
from swjax.hub.files import find_tensors
from swjax.storage import as_path, copy_file

TENSORS = {
    "matrix": np.arange(60, dtype=np.float32).reshape(5, 4, 3),
    "half": np.arange(12).reshape(3, 4).astype(ml_dtypes.bfloat16),
    "row": np.arange(7, dtype=np.float16),
    "scalar": np.array(3.5, np.float32),
}
INDICES = {
    "matrix": [(slice(1, 4), slice(0, 4), slice(1, 2)), (slice(0, 5), slice(3, 4), slice(0, 3))],
    "half": [(slice(2, 3), slice(1, 3))],
    "row": [(slice(3, 7),)],
    "scalar": [()],
}


@pytest.fixture
def uploaded(store, tmp_path):
    """Writes safetensors to a bucket."""

    def upload(name, change=lambda content: content):
        save_file(TENSORS, tmp_path / "model.safetensors")
        (tmp_path / "model.safetensors").write_bytes(change((tmp_path / "model.safetensors").read_bytes()))
        folder = as_path(store[0]) / name
        copy_file(tmp_path / "model.safetensors", folder / "model.safetensors")
        return folder

    return upload


def test_any_block_of_a_tensor_is_read(store, uploaded, tmp_path):
    folder = uploaded("whole")
    with store[1].failing(every=4):
        found, expected = (find_tensors(place, str) for place in (folder, tmp_path))
        assert found.keys() == expected.keys()
        for name, indices in INDICES.items():
            assert (found[name].shape, found[name].dtype) == (expected[name].shape, expected[name].dtype)
            for index in indices:
                left, right = found[name].read(index), expected[name].read(index)
                np.testing.assert_array_equal(left, TENSORS[name][index])
                np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-20],
        lambda content: content[:6],
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: content[:8] + b"x" + content[9:],
    ],
    ids=["cut off", "no header", "length", "no JSON"],
)
def test_what_is_not_whole_is_named(uploaded, change):
    folder = uploaded("damaged", change)
    with pytest.raises(CheckpointError, match=r"damaged/model\.safetensors is damaged"):
        find_tensors(folder, str)


def test_a_store_that_goes_on_failing_is_named(gcs, monkeypatch, capsys):
    monkeypatch.setattr("swjax.storage.files.TRIES", 2)
    monkeypatch.setattr("gcsfs.retry.asyncio.sleep", _no_sleep)
    (as_path("gs://bucket/failing") / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    gcs.always = "503"
    try:
        assert main(["import", "gs://bucket/failing"]) == 2
    finally:
        gcs.always = None
    assert "the store failed (HttpError: " in capsys.readouterr().err


async def _no_sleep(_: float) -> None: ...
