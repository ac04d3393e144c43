"""Chats about images, several videos and nothing: their tokens, positions and logits beside transformers'."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from video_files import numbered_frame, write_video

from swjax.data.batching import pad_rows
from swjax.data.builders.recipe import Recipe, make_record
from swjax.data.encoding import encode_example
from swjax.data.example import ExampleError, Picture, VideoExample
from swjax.data.manifest import read_manifest
from swjax.data.pipeline_config import PipelineConfig
from swjax.data.records import _example
from swjax.data.tokenizer import load_tokenizer
from swjax.hub import load_hf
from swjax.streaming import DEFAULT_CHAT, KeySpans, SpecialTokens

FOLDER = Path(__file__).parents[1] / "golden" / "tiny_qwen2_5_vl"
CONFIG = PipelineConfig(
    batch_size=1, max_tokens=256, max_patches=256, max_videos=4, min_pixels=28 * 28, variant="offline", wait_k=2
)
ANSWER = "The video shows a red square that turns and leaves."


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> dict[str, VideoExample]:
    folder = tmp_path_factory.mktemp("mixed")
    for name, height, width in (("a", 84, 84), ("b", 84, 112)):
        frames = [numbered_frame(number, height, width) for number in range(4)]
        write_video(folder / f"{name}.mp4", frames=frames, rate=2)
    # Not from noise: a JPEG of it is no longer the picture.
    Image.fromarray(np.linspace(0, 255, 56 * 84 * 3, dtype=np.uint8).reshape(56, 84, 3)).save(folder / "a.png")
    turns = [("<image>What is it? <image>", "A square."), ("And this?<video>", ANSWER), ("Why?", "So.")]
    lines = [
        {"video_id": "turns", "images": ["a.png", "a.png"], "videos": ["b.mp4"], "system": "Be short."}
        | {"turns": [{"question": question, "answer": answer} for question, answer in turns]},
        {"video_id": "two", "videos": ["a.mp4", "b.mp4"], "question": "Which?<video><video>", "human_caption": ANSWER},
        {"video_id": "text", "video_path": None, "question": "Who turns?", "human_caption": "A square."},
        {"video_id": "one", "video_path": "a.mp4", "question": "What?", "human_caption": ANSWER, "system": "Be long."},
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_manifest(folder / "manifest.jsonl", strict=True)
    return {example.key: example for example in found.examples}


def encoded(example: VideoExample, tokenizer, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    special = SpecialTokens.from_tokenizer(tokenizer)
    return encode_example(example, config, tokenizer, special, question=example.question or "What?")


def test_a_mixed_chat_reads_as_it_is_written(chats, tokenizer):
    tokenizer = load_tokenizer()
    row = encoded(chats["turns"], tokenizer)
    image, video = "<|image_pad|>" * 6, "<|video_pad|>" * 24
    assert tokenizer.decode(row["token_ids"][np.argsort(row["chat_index"])]) == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n"
        f"<|vision_start|>{image}<|vision_end|>What is it? <|vision_start|>{image}<|vision_end|><|im_end|>\n"
        "<|im_start|>assistant\nA square.<|im_end|>\n"
        f"<|im_start|>user\nAnd this?<|vision_start|>{video}<|vision_end|><|im_end|>\n"
        f"<|im_start|>assistant\n{ANSWER}<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\nSo.<|im_end|>\n"
    )
    assert row["video_grid_thw"].tolist() == [[1, 4, 6], [1, 4, 6], [2, 6, 8]]
    one = tokenizer.decode(encoded(chats["one"], tokenizer)["token_ids"])
    assert "Be long." in one
    assert DEFAULT_CHAT.system_prompt not in one


@pytest.mark.parametrize(
    ("key", "changes", "words"),
    [
        ("turns", {"max_videos": 2}, "3 images and videos, and a row has room for 2; raise max_videos"),
        ("turns", {"max_patches": 96}, "have 144 patches, and a row has room for 96"),
        ("turns", {"max_tokens": 60}, "tokens, and a row has room for 60"),
        ("two", {"wait_k": 30}, "answer 0 has 11 tokens, too short for the 4 frames of its turn at 30 tokens"),
        ("two", {"speaking": "decide", "variant": "gdpe"}, "the chat has no times"),
    ],
)
def test_what_does_not_fit_a_row_is_named(chats, key, changes, words):
    with pytest.raises(ExampleError, match=words):
        encoded(chats[key], load_tokenizer(), **changes)


def test_a_damaged_image_is_named(chats, tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    example = dataclasses.replace(chats["turns"], media=(Picture(tmp_path / "a.png"), *chats["turns"].media[1:]))
    with pytest.raises(ExampleError, match=r"a\.png cannot be read.*; give a JPEG, PNG or WebP file"):
        encoded(example, load_tokenizer())


def test_records_hold_mixed_chats(chats):
    tokenizer = load_tokenizer()
    for example in chats.values():
        record = make_record(example, Recipe(min_pixels=28 * 28, quality=100))
        texts = ("key", "source", "system")
        stored = {name: value.encode() if name in texts else value for name, value in record.items()}
        for name in ("questions", "answers", "later_questions", "later_answers"):
            stored[name] = [text.encode() for text in record[name]]
        back = _example(stored)
        assert (back.question, back.caption, back.later, back.system) == (
            example.question,
            example.caption,
            example.later,
            example.system,
        )
        row, kept = encoded(example, tokenizer), encoded(back, tokenizer)
        for name in row.keys() - {"pixel_values"}:
            np.testing.assert_array_equal(kept[name], row[name], err_msg=name)
        if len(row["pixel_values"]):
            assert np.abs(kept["pixel_values"].astype(int) - row["pixel_values"]).mean() < 4, "JPEG is not exact"


def test_logits_are_those_of_transformers(chats):
    """Each chat in chat order, with the positions that transformers finds itself.

    The videos take up no more ids in time than in space: what follows a longer one begins behind its last frame, as in
    transformers 4, and not within it, as in 5.
    """
    torch = pytest.importorskip("torch")
    from transformers import Qwen2_5_VLForConditionalGeneration

    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        FOLDER, dtype=torch.float32, attn_implementation="eager"
    )
    tokenizer, ours = load_tokenizer(), load_hf(FOLDER)
    special = SpecialTokens.from_tokenizer(tokenizer)
    compiled = jax.jit(lambda model, *arrays, **media: model(*arrays, **media))
    rows = {key: encoded(example, tokenizer) for key, example in chats.items()}
    for key, example in chats.items():
        row, length = rows[key], len(rows[key]["token_ids"])
        ids = row["token_ids"] % 500  # of a tokenizer whose vocabulary is larger than the model's
        for token, of_model in ((special.vision_start, 502), (special.image_pad, 505), (special.video_pad, 506)):
            ids[row["token_ids"] == token] = of_model
        padded = pad_rows([{**row, "token_ids": ids}], tokens=256, patches=192, videos=4)
        found = compiled(
            ours,
            padded["token_ids"],
            padded["position_ids"].swapaxes(0, 1),
            KeySpans(padded["span_start"], padded["span_stop"]),
            pixel_values=padded["pixel_values"],
            video_grid_thw=padded["video_grid_thw"],
        )
        media = example.media if example.video is None else (example.video,)
        is_image = np.array([isinstance(item, Picture) for item in media], bool)
        of_image = np.repeat(is_image, row["video_grid_thw"].prod(axis=1))
        pixels = (row["pixel_values"].reshape(-1, 3, 2 * 14 * 14) / 255 - MEAN) / STD
        pixels = torch.tensor(pixels.reshape(-1, 1176), dtype=torch.float32)
        kinds = np.select([ids == 505, ids == 506], [1, 2])
        inputs = {"input_ids": torch.tensor(ids)[None].long(), "mm_token_type_ids": torch.tensor(kinds)[None]}
        for name, chosen, patches in (("image", is_image, of_image), ("video", ~is_image, ~of_image)):
            if chosen.any():
                inputs[f"{name}_grid_thw"] = torch.tensor(row["video_grid_thw"][chosen]).long()
                inputs["pixel_values" + "_videos" * (name == "video")] = pixels[torch.tensor(patches)]
        if (~is_image).any():
            inputs["second_per_grid_ts"] = torch.ones(int((~is_image).sum()))
        with torch.no_grad():
            expected = theirs(**inputs).logits[0].numpy()
        np.testing.assert_allclose(np.asarray(found)[0, :length], expected, atol=1e-4, err_msg=key)


MEAN = np.array([0.48145466, 0.4578275, 0.40821073])[:, None]
STD = np.array([0.26862954, 0.26130258, 0.27577711])[:, None]
