"""Loading tokenizers: the shipped one, one in a folder, and clear errors for the rest."""

import json
import shutil

import pytest

from swjax.data.tokenizer import SHIPPED_TOKENIZER, TokenizerError, load_tokenizer


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(SHIPPED_TOKENIZER, tmp_path / "tokenizer")


def test_a_folder_is_loaded_like_the_shipped_one(folder):
    assert load_tokenizer(folder).get_vocab() == load_tokenizer().get_vocab()


def test_missing_folder_and_missing_file(folder, tmp_path):
    with pytest.raises(TokenizerError, match="nowhere is not a folder"):
        load_tokenizer(tmp_path / "nowhere")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json"):
        load_tokenizer(folder)


def test_a_broken_file_is_named(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer in .*tokenizer cannot be read"):
        load_tokenizer(folder)


def test_missing_special_tokens_are_named(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<|video_pad|>"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=r"lacks Qwen2\.5-VL's special tokens <\|video_pad\|>"):
        load_tokenizer(folder)


def test_a_missing_chat_template_is_named(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(TokenizerError, match="has no chat template"):
        load_tokenizer(folder)
