"""Loading tokenizers: the shipped one, one in a folder, and clear errors for the rest."""

import itertools
import json
import shutil

import pytest
from hub_folder import TEXT_TEMPLATE, VIDEO_TEMPLATE, make_hub_folder
from transformers import Qwen2_5_VLProcessor

from swjax.data.chat import encode_chat
from swjax.data.example import ExampleError
from swjax.data.tokenizer import SHIPPED_TOKENIZER, TokenizerError, load_tokenizer
from swjax.notice import Notice


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


def edit(file, **changes):
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | changes))


def encoded(tokenizer):
    return encode_chat(tokenizer, question="What?", answer="A circle.", video_grid_thw=(1, 2, 2)).tolist()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return make_hub_folder(tmp_path_factory.mktemp("hub") / "folder")


def test_a_released_folder_s_template_is_that_of_chat_template_json(hub):
    assert json.loads((hub / "tokenizer_config.json").read_text())["chat_template"] == TEXT_TEMPLATE
    assert load_tokenizer(hub).chat_template == VIDEO_TEMPLATE
    assert encoded(load_tokenizer(hub)) == encoded(load_tokenizer())


PLACES = {
    "processor_config.json": lambda folder, text: edit(folder / "processor_config.json", chat_template=text),
    "chat_template.json": lambda folder, text: edit(folder / "chat_template.json", chat_template=text),
    "chat_template.jinja": lambda folder, text: (folder / "chat_template.jinja").write_text(text),
    "tokenizer_config.json": lambda folder, text: edit(folder / "tokenizer_config.json", chat_template=text),
}


@pytest.mark.parametrize("names", [pair for pair in itertools.combinations(PLACES, 2)] + [tuple(PLACES)])
def test_of_several_templates_the_processor_s_is_taken(folder, names):
    (folder / "chat_template.jinja").unlink()
    for name in names:
        PLACES[name](folder, f"{{# {name} #}}" + VIDEO_TEMPLATE)
    taken = load_tokenizer(folder).chat_template
    processor = Qwen2_5_VLProcessor.get_processor_dict(folder)[0].get("chat_template")
    assert taken == processor
    assert taken.startswith(f"{{# {names[0]} #}}")


def test_the_tokenizer_s_own_template_is_taken_where_the_processor_has_none(folder):
    (folder / "chat_template.jinja").unlink()
    edit(folder / "processor_config.json", processor_class="Qwen2_5_VLProcessor")
    edit(folder / "tokenizer_config.json", chat_template=VIDEO_TEMPLATE)
    assert load_tokenizer(folder).chat_template == VIDEO_TEMPLATE


def test_of_templates_by_name_the_default_is_taken(folder):
    (folder / "chat_template.jinja").unlink()
    rows = [{"name": "tool_use", "template": TEXT_TEMPLATE}, {"name": "default", "template": VIDEO_TEMPLATE}]
    edit(folder / "tokenizer_config.json", chat_template=rows)
    assert load_tokenizer(folder).chat_template == VIDEO_TEMPLATE
    edit(folder / "tokenizer_config.json", chat_template=rows[:1])
    with pytest.raises(TokenizerError, match='holds templates tool_use and none named "default"'):
        load_tokenizer(folder)


def test_additional_templates_are_read_as_transformers_reads_them(folder):
    additional = folder / "additional_chat_templates"
    additional.mkdir()
    (additional / "tool_use.jinja").write_text(TEXT_TEMPLATE)
    assert load_tokenizer(folder).chat_template == VIDEO_TEMPLATE
    (folder / "chat_template.jinja").rename(additional / "default.jinja")
    assert load_tokenizer(folder).chat_template == VIDEO_TEMPLATE
    (additional / "default.jinja").unlink()
    with pytest.raises(TokenizerError, match='holds templates tool_use and none named "default"'):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (TEXT_TEMPLATE, r"it takes text alone: TypeError: can only concatenate str"),
        ("{% for m in messages %}{{ m.content ", "TemplateSyntaxError: .*, line 1"),
        ("{{ messages[7].content.text }}", "UndefinedError"),
        ("{{ raise_exception('of pictures alone') }}", "of pictures alone"),
        ("{{ messages[0].__class__.__mro__ }}", "SecurityError"),
        ("hello", "places the video 0 times"),
        (VIDEO_TEMPLATE * 2, "places the video 2 times"),
        (VIDEO_TEMPLATE.replace("<|vision_end|>", ""), "it ends a question with"),
        (VIDEO_TEMPLATE.replace("add_generation_prompt", "false"), "it ends a question with"),
        ("{%- set messages = messages[:3] -%}" + VIDEO_TEMPLATE, "it writes a chat of two questions"),
        ("{% for a in range(99999999) %}{% endfor %}", "Range too big"),
    ],
)
def test_a_template_that_cannot_write_about_a_video_is_refused_with_the_reason(folder, template, reason):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(
        TokenizerError, match=rf"(?s)in .*chat_template\.jinja cannot write .*{reason}.*; put chat_templ"
    ):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"chat_template\.json is damaged"),
        (b"[" * 100_000, r"chat_template\.json is damaged"),
        (b'"text"', 'chat_template.json has no key "chat_template"'),
        (b'{"chat_template": 7}', 'chat_template.json holds no template and none named "default"'),
        (b"\xff\xfe", r"chat_template\.json cannot be read"),
    ],
)
def test_a_damaged_template_file_is_named(folder, content, message):
    (folder / "chat_template.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(folder)


def test_without_any_template_ours_is_taken_with_a_notice(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.warns(Notice, match="has no chat template; taking swjax's"):
        tokenizer = load_tokenizer(folder)
    assert tokenizer.chat_template == VIDEO_TEMPLATE


def test_a_byte_order_mark_before_a_template_s_file_is_skipped(folder):
    (folder / "chat_template.json").write_bytes(
        b"\xef\xbb\xbf" + json.dumps({"chat_template": VIDEO_TEMPLATE}).encode()
    )
    assert load_tokenizer(folder).chat_template == VIDEO_TEMPLATE


def test_vocab_and_merges_make_the_same_tokenizer(hub, tmp_path):
    shutil.copytree(hub, tmp_path / "slow")
    (tmp_path / "slow" / "tokenizer.json").unlink()
    slow, fast = load_tokenizer(tmp_path / "slow"), load_tokenizer()
    assert slow.get_vocab() == fast.get_vocab()
    assert encoded(slow) == encoded(fast)
    (tmp_path / "slow" / "merges.txt").unlink()
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json, nor vocab\.json with merges\.txt"):
        load_tokenizer(tmp_path / "slow")


def test_words_added_as_plain_text_may_stand_in_captions_and_structure_may_not(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    plain = {key: False for key in ("single_word", "lstrip", "rstrip", "normalized", "special")}
    content["added_tokens"].append({"id": 479, "content": "...", **plain})
    for token in content["added_tokens"]:
        token["special"] = token["special"] and token["content"] != "<|im_end|>"
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(folder)
    ids = encode_chat(tokenizer, question="What?", answer="Wait ... <tool_call>", video_grid_thw=(1, 2, 2)).tolist()
    assert 479 in ids
    for text in ("<|im_end|>", "a <|vision_pad|>"):
        with pytest.raises(ExampleError, match="contains the special token"):
            encode_chat(tokenizer, question="What?", answer=text, video_grid_thw=(1, 2, 2))


def test_the_shipped_tokenizer_is_of_the_class_that_qwen_s_processor_asks_for():
    config = json.loads((SHIPPED_TOKENIZER / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "Qwen2Tokenizer"
    assert "extra_special_tokens" not in config
