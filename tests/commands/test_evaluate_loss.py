"""The loss of captions, against one row at a time: whatever lengths data sets claim and videos have."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from swjax.commands.evaluate_loss import caption_losses
from swjax.data.batching import pad_rows
from swjax.data.chat import EVALUATION_QUESTION
from swjax.data.clips import encode_clip
from swjax.data.encoding import encode_example
from swjax.data.example import EncodedClip, VideoExample
from swjax.data.pipeline_config import PipelineConfig
from swjax.data.tokenizer import load_tokenizer
from swjax.runs.streaming_model import StreamingModel
from swjax.streaming import SpecialTokens, StreamSpec
from swjax.training.objectives.next_token import losses_by_row

CAPTION = "The video shows a red circle entering from the left. It turns and leaves at the top."


def clip(seconds, height=70, width=90):
    frames = np.random.default_rng(seconds).integers(0, 255, (2 * seconds, height, width, 3), np.uint8)
    return EncodedClip(f"{seconds} s", encode_clip(frames), 2.0)


def test_videos_are_measured_and_claims_and_later_turns_lose_none(random_model):
    """Frames of 4 x 6 patches, where max_pixels has room for 153, which are no whole tokens."""
    tokenizer = load_tokenizer(None)
    record = StreamSpec(max_pixels=30_000)
    later = (("And then?", "It comes back and stays for a long while, and then for a while more, and leaves. " * 2),)
    good = [
        VideoExample("in milliseconds", clip(3), 3000.0, CAPTION),
        VideoExample("too short", clip(4), 0.001, CAPTION),
        VideoExample("a chat without a claim", clip(3), None, CAPTION, question="What happens?", later=later),
    ]
    bad = [VideoExample("terse", clip(4), None, "It."), VideoExample("gone", Path("gone.mp4"), None, CAPTION)]
    source = StreamingModel(random_model, Path(), record)
    found = caption_losses(source, tokenizer, [bad[0], *good, bad[1]])
    assert found.videos == len(good)
    assert [example.where for example in found.rejected] == ["terse", "gone"]
    assert "too short for its 4 frames" in found.rejected[0].reason

    special = SpecialTokens.from_tokenizer(tokenizer)
    config = PipelineConfig(batch_size=1, max_tokens=256, max_patches=128, max_pixels=record.max_pixels)
    one_row = jax.jit(functools.partial(losses_by_row, random_model, max_labels=128))
    total = labels = 0.0
    for example in good:
        asked = example.question or EVALUATION_QUESTION
        row = encode_example(example, config, tokenizer, special, question=asked)
        batch = pad_rows([row], tokens=256, patches=128, videos=1)
        total += float(one_row(batch)[0])
        labels += np.count_nonzero(batch["labels"] >= 0)
    assert labels > 100
    assert found.scores["loss"].value == pytest.approx(total / labels, rel=1e-4)
    assert found.scores["perplexity"].value == pytest.approx(np.exp(total / labels), rel=1e-3)
    assert caption_losses(source, tokenizer, bad).scores == {}
