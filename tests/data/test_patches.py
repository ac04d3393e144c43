"""Patches against transformers' own processors for images and videos."""

import ast
import inspect
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import example, given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from swjax.data.example import ExampleError
from swjax.data.patches import resized_size, video_to_patches

BUDGET = {"min_pixels": 56 * 56, "max_pixels": 224 * 224}


def random_frames(count, height, width, seed=0):
    """Smooth colour ramps with noise, so that a wrong filter or a swapped axis shows."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    ramp = np.stack([255 * rows / height, 255 * columns / width, 255 * (rows + columns) / (height + width)], axis=-1)
    noise = generator.normal(0, 20, (count, height, width, 3))
    return np.clip(ramp * np.linspace(0.5, 1, count)[:, None, None, None] + noise, 0, 255).astype(np.uint8)


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from([28, 32]),
    st.integers(1, 56 * 56),
    st.integers(56 * 56, 2000 * 2000),
)
@example(42, 70, 28, 1, 10**6)  # halves are rounded to even
@example(4, 700, 28, 3136, 10**5)
def test_sizes(height, width, factor, min_pixels, max_pixels):
    arguments = {"factor": factor, "min_pixels": min_pixels, "max_pixels": max_pixels}
    if max(height, width) <= 200 * min(height, width):
        assert resized_size(height, width, **arguments) == smart_resize(height, width, **arguments)


@pytest.mark.parametrize(
    ("height", "width"), [(56, 56), (112, 112), (64, 96), (100, 37), (240, 320), (480, 270), (20, 20), (31, 500)]
)
def test_resize_and_order_within_a_frame(height, width):
    """The processor for images repeats the image in time, so a clip of the same frame twice must agree with it."""
    (frame,) = random_frames(1, height, width)
    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": BUDGET["min_pixels"], "longest_edge": BUDGET["max_pixels"]}
    )
    expected = processor(images=[frame], return_tensors="np")
    mean, std = (np.array(value)[None, :, None] for value in (processor.image_mean, processor.image_std))
    pixels = np.asarray(expected["pixel_values"]).reshape(len(expected["pixel_values"]), 3, -1)
    patches, grid = video_to_patches(np.stack([frame, frame]), **BUDGET)
    assert grid == tuple(expected["image_grid_thw"][0])
    assert patches.dtype == np.uint8
    assert patches.shape == (np.prod(grid), 1176)
    difference = np.abs((pixels * std + mean) * 255 - patches.reshape(pixels.shape))
    assert difference.max() < 1


def video_patchify():
    """The method `patchify` of transformers' video processor, whose module cannot be imported without torchvision."""
    path = Path(inspect.getfile(transformers)).parent / "models" / "qwen2_vl" / "video_processing_qwen2_vl.py"
    (processor,) = (
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "Qwen2VLVideoProcessor"
    )
    (method,) = (node for node in processor.body if isinstance(node, ast.FunctionDef) and node.name == "patchify")
    namespace = {"torch": torch}
    exec(compile(ast.Module([method], []), str(path), "exec"), namespace)
    return namespace["patchify"]


@pytest.mark.parametrize(("count", "height", "width"), [(2, 56, 84), (6, 112, 56), (8, 28, 28)])
def test_order_in_time(count, height, width):
    frames = random_frames(count, height, width)
    videos = torch.from_numpy(frames).permute(0, 3, 1, 2)[None]
    expected, *grid = video_patchify()(SimpleNamespace(), videos, patch_size=14, merge_size=2, temporal_patch_size=2)
    patches, grid_thw = video_to_patches(frames, min_pixels=28 * 28, max_pixels=224 * 224)
    assert grid_thw == tuple(grid)
    np.testing.assert_array_equal(patches, expected[0].numpy())


def test_resolution_does_not_depend_on_length():
    frames = random_frames(40, 240, 320)
    whole, (t, h, w) = video_to_patches(frames, **BUDGET)
    first, grid = video_to_patches(frames[:2], **BUDGET)
    assert grid == (1, h, w)
    assert t == 20
    np.testing.assert_array_equal(whole[: h * w], first)
    assert h * w * 14**2 <= BUDGET["max_pixels"]


@pytest.mark.parametrize("frames", [np.zeros((2, 28, 28, 3), np.float32), np.zeros((28, 28, 3), np.uint8)])
def test_wrong_frames(frames):
    with pytest.raises(ValueError, match=r"frames must be uint8\[frames, height, width, 3\], got"):
        video_to_patches(frames, **BUDGET)


def test_wrong_counts_and_sizes():
    with pytest.raises(ValueError, match="3 frames are not a whole number of temporal patches of 2"):
        video_to_patches(np.zeros((3, 28, 28, 3), np.uint8), **BUDGET)
    with pytest.raises(ExampleError, match="a frame of 1000 x 4 pixels is too long"):
        video_to_patches(np.zeros((2, 4, 1000, 3), np.uint8), **BUDGET)
    with pytest.raises(ValueError, match="got min_pixels 5000 and max_pixels 4000"):
        video_to_patches(np.zeros((2, 28, 28, 3), np.uint8), min_pixels=5000, max_pixels=4000)
