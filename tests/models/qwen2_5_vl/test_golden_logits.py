"""The model against Hugging Face's, on recorded inputs and outputs (float32)."""

from pathlib import Path

import jax
import numpy as np
import pytest

from swjax.hub import load_hf
from swjax.streaming import KeySpans, SpecialTokens, build_layout

FOLDER = Path(__file__).parents[2] / "golden" / "tiny_qwen2_5_vl"
GOLDEN = np.load(FOLDER / "golden.npz")


@pytest.fixture(scope="module")
def model():
    return load_hf(FOLDER)


def golden(case: int) -> dict[str, np.ndarray]:
    return {name.split("/")[1]: GOLDEN[name] for name in GOLDEN.files if name.startswith(f"case{case}/")}


@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize("name", ["offline", "gdpe", "gipe_10000"])
def test_logits(model, case, name):
    data = golden(case)
    layout = build_layout(
        data["official_ids"],
        data["grid_thw"][None],
        variant=name.split("_")[0],
        special_tokens=SpecialTokens.qwen2_5_vl(),
    )
    np.testing.assert_array_equal(layout.position_ids, data[f"positions_{name}"][:, layout.chat_index])
    logits = jax.jit(lambda model, *arrays, **named: model(*arrays, **named))(
        model,
        data["input_ids"][layout.chat_index][None],
        layout.position_ids[:, None],
        KeySpans(layout.spans.start[None], layout.spans.stop[None]),
        pixel_values=data["pixel_values"][None],
        video_grid_thw=data["grid_thw"][None, None],
    )
    np.testing.assert_allclose(logits[0], data[f"logits_{name}"][layout.chat_index], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", [0, 1])
def test_vision_features(model, case):
    data = golden(case)
    features = model.encode_video(data["pixel_values"], data["grid_thw"][None])
    np.testing.assert_allclose(features, data["vision_features"], atol=1e-4, rtol=0)


def test_padding_and_several_videos_leave_the_features_as_they_are(model):
    first, second = golden(0), golden(1)
    padding = np.zeros((24, 1176), np.float32)
    pixels = np.concatenate([first["pixel_values"], second["pixel_values"], padding])
    grid = np.stack([first["grid_thw"], second["grid_thw"], np.zeros(3, np.int64)])
    features = jax.jit(lambda model, *arrays: model.encode_video(*arrays))(model, pixels, grid)
    expected = np.concatenate([first["vision_features"], second["vision_features"]])
    np.testing.assert_allclose(features[: len(expected)], expected, atol=1e-4, rtol=0)


def test_a_video_encoded_frame_by_frame_is_the_same(model):
    data = golden(1)
    steps, rows, columns = data["grid_thw"]
    frames = data["pixel_values"].reshape(steps, rows * columns, -1)
    features = [model.encode_video(frame, np.array([[1, rows, columns]])) for frame in frames]
    np.testing.assert_allclose(np.concatenate(features), data["vision_features"], atol=1e-4, rtol=0)
