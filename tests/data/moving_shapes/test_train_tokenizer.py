"""The shipped tokenizer: what it was trained to, Qwen2.5-VL's special tokens, one token a word."""

import json

import pytest

from swjax.data.moving_shapes.grammar import split_tokens, vocabulary
from swjax.data.moving_shapes.scene import draw_scene
from swjax.data.moving_shapes.train_tokenizer import ADDED_TOKENS, FOLDER, SPECIAL_TOKENS, write
from swjax.data.tokenizer import load_tokenizer
from swjax.streaming import DEFAULT_CHAT


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def test_training_again_gives_the_shipped_files(tmp_path):
    write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    for path in tmp_path.iterdir():
        assert json.loads(path.read_text()) == json.loads((FOLDER / path.name).read_text())


def test_special_tokens_stand_last_in_the_order_of_qwen2_5_vl(tokenizer):
    names = [
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
        *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
        *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>"),
        *("<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
    ]
    assert (*SPECIAL_TOKENS, *ADDED_TOKENS) == tuple(names)
    ids = tokenizer.convert_tokens_to_ids(names)
    assert ids == list(range(len(tokenizer) - len(names), len(tokenizer)))
    assert 400 <= len(tokenizer) <= 600
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    for name, number in zip(names, ids, strict=True):
        assert number in tokenizer.encode(f"red{name}red")


def test_words_of_captions_and_of_the_chat_are_single_tokens(tokenizer):
    for word in [*vocabulary(), "system", "user", "assistant", "\n"]:
        assert len(tokenizer.encode(word)) == 1, word
    for word in split_tokens(DEFAULT_CHAT.system_prompt):
        assert len(tokenizer.encode(word)) == 1, word


def test_captions_have_a_token_a_word(tokenizer):
    for index in range(50):
        caption = draw_scene((0, 0, index)).caption
        ids = tokenizer.encode(caption)
        assert [tokenizer.decode([number]) for number in ids] == split_tokens(caption)
        assert tokenizer.decode(ids) == caption


@pytest.mark.parametrize("text", ["", "It's 12 o'clock.\n\n", "żółw 🐢 日本", "  two  spaces ", "a\tb\r\nc"])
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_chat_text_is_that_of_qwen2_5_vl(tokenizer):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}, {"type": "video", "video": "a.mp4"}]},
        {"role": "assistant", "content": "A circle."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And this?"}]},
    ]
    chat = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhat is this?<|vision_start|><|video_pad|><|vision_end|><|im_end|>\n"
        "<|im_start|>assistant\nA circle.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>And this?<|im_end|>\n"
    )
    assert tokenizer.apply_chat_template(messages, tokenize=False) == chat
    prompted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompted == chat + "<|im_start|>assistant\n"


def test_a_system_message_replaces_the_default(tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    chat = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == chat


def test_unknown_parts_of_a_message_are_refused(tokenizer):
    with pytest.raises(Exception, match="must be text, an image or a video, but its type is audio"):
        tokenizer.apply_chat_template([{"role": "user", "content": [{"type": "audio"}]}], tokenize=False)
