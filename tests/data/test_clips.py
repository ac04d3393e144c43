"""Clips of records: near the frames that they were made of, at any rate that divides theirs, and damage is named."""

import numpy as np
import pytest
from test_patches import random_frames

from swjax.data.clips import decode_clip, encode_clip
from swjax.data.example import EncodedClip, ExampleError
from swjax.data.patches import resize


def smooth_clip(count=6, fps=2.0):
    frames = resize(random_frames(count, 90, 160), 448, 784)
    return frames, EncodedClip("name", encode_clip(frames), fps)


def test_frames_come_back():
    frames, clip = smooth_clip()
    decoded = decode_clip(clip, fps=2.0)
    assert decoded.dtype == np.uint8
    assert decoded.shape == frames.shape
    difference = np.abs(decoded.astype(int) - frames)
    assert difference.mean() < 2
    np.testing.assert_array_equal(decode_clip(clip, fps=1.0), decoded[::2])


@pytest.mark.parametrize("fps", [4.0, 1.5])
def test_other_rates_are_refused(fps):
    _, clip = smooth_clip()
    with pytest.raises(ExampleError, match=f"name holds 2 frames a second, of which {fps:g} cannot be taken"):
        decode_clip(clip, fps=fps)


def test_damage():
    _, clip = smooth_clip(2)
    first, second = clip.frames
    with pytest.raises(ExampleError, match="name holds a damaged frame"):
        decode_clip(EncodedClip("name", (first, second[: len(second) // 2]), 2.0), fps=2.0)
    with pytest.raises(ExampleError, match="name holds a damaged frame"):
        decode_clip(EncodedClip("name", (first, b"no picture"), 2.0), fps=2.0)
    with pytest.raises(ExampleError, match="name holds no frames"):
        decode_clip(EncodedClip("name", (), 2.0), fps=2.0)
    small = encode_clip(np.zeros((1, 28, 28, 3), np.uint8))
    with pytest.raises(ExampleError, match="frames of several sizes"):
        decode_clip(EncodedClip("name", (first, *small), 2.0), fps=2.0)
