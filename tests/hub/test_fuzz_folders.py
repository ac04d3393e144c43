"""Random damage to the small files of a checkpoint's folder: nothing but the documented errors ever comes out."""

import json
import shutil
import warnings

import pytest
from hub_folder import make_hub_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swjax.data.tokenizer import TokenizerError, load_tokenizer
from swjax.hub import CheckpointError
from swjax.runs.streaming_model import open_streaming_model

SMALL = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, 2**31, 1e300, "{{ messages }}", "default", "\ud83d", "\u2028"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_hub_folder(tmp_path_factory.mktemp("fuzz") / "folder")


@st.composite
def damage(draw, content):
    """JSON text in which a value was replaced, removed or added somewhere, or which was cut."""
    content = json.loads(json.dumps(content))
    node = content
    while True:
        key = draw(st.sampled_from(sorted(node)))
        if not (isinstance(node[key], dict) and node[key] and draw(st.booleans())):
            break
        node = node[key]
    what = draw(st.sampled_from(["replaced", "replaced", "removed", "added", "cut"]))
    if what == "removed":
        del node[key]
    else:
        node["more" if what == "added" else key] = draw(JSON)
    text = json.dumps(content)
    return text[: draw(st.integers(0, len(text)))] if what == "cut" else text


def only_documented(use, *errors):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            use()
        except errors:
            return


def check_damage(data, folder, tmp_path_factory, name, use, *errors):
    copy = tmp_path_factory.mktemp("damaged") / "folder"
    shutil.copytree(folder, copy)
    (copy / name).write_text(data.draw(damage(json.loads((folder / name).read_text()))))
    only_documented(lambda: use(copy), *errors)
    shutil.rmtree(copy)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@SMALL
@given(data=st.data())
def test_what_a_model_is_made_of(folder, tmp_path_factory, name, data):
    check_damage(data, folder, tmp_path_factory, name, open_streaming_model, CheckpointError)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.json"])
@SMALL
@given(data=st.data())
def test_what_a_tokenizer_is_made_of(folder, tmp_path_factory, name, data):
    check_damage(data, folder, tmp_path_factory, name, load_tokenizer, TokenizerError)


PIECES = st.sampled_from(
    (
        *("{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m.content[1].text }}", "{%- set m = m -%}"),
        *(
            "{% if add_generation_prompt %}",
            "{% endif %}",
            "{{",
            "%}",
            "\x00",
            "{{ messages | tojson }}",
            "{{ 1 / 0 }}",
        ),
        *("<|im_start|>", "<|im_end|>\n", "<|vision_start|><|video_pad|><|vision_end|>", "{{ 1 / 0 }}"),
    )
)


@SMALL
@given(template=st.lists(PIECES | st.text(max_size=5), max_size=12).map("".join))
def test_chat_templates(folder, tmp_path_factory, template):
    copy = tmp_path_factory.mktemp("damaged") / "folder"
    shutil.copytree(folder, copy)
    (copy / "chat_template.json").unlink()
    (copy / "chat_template.jinja").write_text(template, encoding="utf-8", errors="surrogatepass")
    only_documented(lambda: load_tokenizer(copy), TokenizerError)
    shutil.rmtree(copy)
