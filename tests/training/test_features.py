"""Features of a frozen tower that are kept are those of encoding, to the bit, and train as pixels do."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from rich.console import Console

from swjax.models.parameters import split_parameters
from swjax.training.config import ConfigError
from swjax.training.features import FeatureCache, open_feature_cache
from swjax.training.run import train


@pytest.fixture
def opened(random_model):
    """The cache of a model, and how to make a batch for it."""
    parameters = split_parameters(random_model)[1]

    def opened(megabytes: int, trainable: dict | None = None):
        state = SimpleNamespace(frozen=parameters, trainable=trainable or {})
        return open_feature_cache(megabytes, "float32", random_model.config, state)

    return opened


def batch_of(*rows: list[tuple[int, int]], patches: int = 64) -> dict[str, np.ndarray]:
    """Rows of images and videos: of each its seed and its frames of 4 x 2 patches."""
    pixels = np.zeros((len(rows), patches, 1176), np.uint8)
    grids = np.zeros((len(rows), 3, 3), np.int32)
    for row, items in enumerate(rows):
        first = 0
        for place, (seed, frames) in enumerate(items):
            grids[row, place] = frames, 4, 2
            drawn = np.random.default_rng(seed).integers(0, 256, (8 * frames, 1176), np.uint8)
            pixels[row, first : first + len(drawn)] = drawn
            first += len(drawn)
    return {"pixel_values": pixels, "video_grid_thw": grids, "token_ids": np.zeros((len(rows), 4), np.int32)}


def test_what_is_kept_is_what_encoding_makes(opened, random_model) -> None:
    kept = opened(1)
    never = FeatureCache(kept.encode, 0)
    alone = batch_of([(1, 3)], [])
    together = batch_of([(2, 1), (1, 3), (3, 2)], [(3, 2)])
    first = kept(alone)["pixel_values"]
    again = kept(together)["pixel_values"]
    assert (kept.encoded, kept.num_bytes) == (3, 48 * first.shape[2] * 4)
    np.testing.assert_array_equal(again[0, 8:32].view(np.uint32), first[0, :24].view(np.uint32))
    np.testing.assert_array_equal(never(together)["pixel_values"].view(np.uint32), again.view(np.uint32))
    assert (never.encoded, never.num_bytes) == (4, 0)
    assert kept(together)["token_ids"] is together["token_ids"]
    visual = jax.jit(lambda model, *given: model.visual(*given))
    expected = np.asarray(visual(random_model, together["pixel_values"], together["video_grid_thw"]))
    merged = np.asarray(visual(random_model, again, together["video_grid_thw"]))
    for row, units in ((0, 12), (1, 4)):
        np.testing.assert_allclose(merged[row, :units], expected[row, :units], rtol=1e-4, atol=1e-5)
    nothing = kept(batch_of([], []))["pixel_values"]
    assert (nothing.shape, nothing.dtype) == (again.shape, again.dtype)
    assert not nothing.any()


def test_a_tower_that_trains_has_no_cache(opened) -> None:
    assert opened(0) is None
    with pytest.raises(ConfigError, match=r"feature_cache_mb needs a vision tower that is frozen, and visual/patch"):
        opened(1, {"visual/merger/norm_d": 0, "visual/patch_weight_cd": 0})


def test_a_run_on_kept_features_is_the_run_on_pixels(make_config, tmp_path: Path) -> None:
    lines = []
    for name, megabytes in (("pixels", 0), ("features", 1)):
        config = make_config(tmp_path / name)
        config.frozen, config.steps, config.data.feature_cache_mb = ("visual/(?!merger)",), 3, megabytes
        train(config, console=Console(quiet=True))
        lines.append([json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()])
    pixels, features = ([line for line in found if "loss" in line] for found in lines)
    assert len(pixels) == 3
    for one, other in zip(features, pixels, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        assert one["compilations"] == 1
    losses = [[line["validation_loss"] for line in found if "validation_loss" in line] for found in lines]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
