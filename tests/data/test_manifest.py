"""Manifests: what a good line gives, and what is said of every kind of bad one."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swjax.data.chat import encode_chat
from swjax.data.example import ExampleError, Question, Sentence
from swjax.data.manifest import ManifestError, read_manifest
from swjax.streaming import DEFAULT_CHAT

GOOD = {"video_path": "videos/a.mp4", "video_duration_in_s": 1.0, "human_caption": " The video shows a square. "}
FIELDS = (
    *("video_path", "video_duration_in_s", "human_caption", "video_id", "question", "start_s", "end_s", "sentences"),
    *("turns", "text", "answer", "questions", "video_s"),
)


def without(name):
    return {key: value for key, value in GOOD.items() if key != name}


def test_good_lines(manifest_file, tmp_path):
    absolute = GOOD | {"video_path": str(tmp_path / "videos" / "a.mp4"), "video_id": 7, "question": "What?", "x": 1}
    manifest = read_manifest(manifest_file(GOOD, "", absolute))
    assert manifest.rejected == ()
    first, second = manifest.examples
    assert first.key == "manifest.jsonl:1"
    assert first.video == second.video == tmp_path / "videos" / "a.mp4"
    assert first.caption == "The video shows a square."
    assert first.duration_s == 1.0
    assert first.question is None
    assert (second.key, second.question) == ("7", "What?")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{not json", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        ("[1]", "expected a JSON object, found a list"),
        (without("human_caption"), "the field 'human_caption' is missing"),
        (without("video_path"), "the field 'video_path' is missing"),
        (GOOD | {"human_caption": 3}, "the field 'human_caption' must be text, found the number 3"),
        (GOOD | {"human_caption": None}, "the field 'human_caption' must be text, found null"),
        (GOOD | {"human_caption": " "}, "the field 'human_caption' is empty"),
        (GOOD | {"question": ["?"]}, "the field 'question' must be text, found a list"),
        (GOOD | {"video_id": 1.5}, "the field 'video_id' must be text or an integer, found the number 1.5"),
        (GOOD | {"video_duration_in_s": "8"}, "must be a number of seconds, found text"),
        (GOOD | {"video_duration_in_s": True}, "must be a number of seconds, found true or false"),
        (GOOD | {"video_duration_in_s": 0}, "must be above 0 seconds, found 0"),
        (GOOD | {"video_duration_in_s": float("nan")}, "must be above 0 seconds, found nan"),
        (GOOD | {"video_path": "videos/none.mp4"}, "there is no video file "),
        (GOOD | {"video_id": "first"}, "video_id 'first' was used by an earlier line"),
        (GOOD | {"video_path": "../a.mp4"}, "lies outside of the data root"),
        (GOOD | {"video_path": "/etc/hostname"}, "lies outside of the data root"),
        (GOOD | {"start_s": 3, "end_s": 2}, "the clip would begin at 3 s and end at 2 s"),
        (GOOD | {"start_s": -1}, "the field 'start_s' must be at least 0 seconds, found -1"),
        (GOOD | {"end_s": "x"}, "the field 'end_s' must be a number of seconds, found text"),
        (
            GOOD | {"turns": [{"question": "?", "answer": "!"}]},
            "the fields 'turns' and 'human_caption' exclude each other",
        ),
        (without("human_caption") | {"turns": []}, "the field 'turns' must be a list of objects, at least 1, found"),
        (without("human_caption") | {"turns": [{"question": "?"}]}, "the field 'answer' is missing"),
        (GOOD | {"sentences": [{"text": "a", "start_s": 0}]}, "'sentences' and 'human_caption' exclude each other"),
        (
            without("human_caption") | {"sentences": [{"text": "a", "start_s": 2}, {"text": "b", "start_s": 1}]},
            "start_s run backwards: [2.0, 1.0]",
        ),
        (without("human_caption") | {"questions": []}, "the field 'questions' must be a list of objects, at least 1"),
        (GOOD | {"questions": [{"text": "?", "video_s": 1}]}, "a question needs either an 'answer' or 'sentences'"),
        (GOOD | {"questions": [{"video_s": 1, "answer": "!"}]}, "the field 'text' is missing"),
        (
            GOOD | {"questions": [{"text": "?", "video_s": 2, "sentences": [{"text": "!", "start_s": 1}]}]},
            "an answer is due at 1 s, before its question at 2 s",
        ),
        (
            GOOD | {"questions": [{"text": "?", "video_s": time, "answer": "!"} for time in (2, 1)]},
            "the questions' video_s run backwards: [2.0, 1.0]",
        ),
        ("[" * 100_000, "not JSON"),
        (json.dumps(GOOD).replace("1.0", "1" * 5000), "not JSON that can be read: a number has too many digits"),
        (GOOD | {"video_duration_in_s": 10**400}, "must be at most 1e+09 seconds, found 1000"),
        (GOOD | {"video_duration_in_s": float("inf")}, "must be at most 1e+09 seconds, found inf"),
        (GOOD | {"end_s": 1e300}, "the field 'end_s' must be at most 1e+09 seconds, found 1e+300"),
        (GOOD | {"start_s": 1e300}, "the field 'start_s' must be at most 1e+09 seconds, found 1e+300"),
        (GOOD | {"video_path": "x" * 5000 + ".mp4"}, "characters): File name too long"),
        (GOOD | {"video_path": "a\0.mp4"}, "'video_path' has a NUL character"),
        (
            GOOD | {"video_path": "https://example.com/a.mp4"},
            "is the address https://example.com/a.mp4; fetch the video",
        ),
        (GOOD | {"video_path": "\udc80.mp4"}, "the field 'video_path' has half a character (\\udc80 at position 0)"),
        (GOOD | {"video_id": "\ud83d"}, "the field 'video_id' has half a character"),
        (
            GOOD | {"human_caption": "A \ud83d"},
            "'human_caption' has half a character (\\ud83d at position 2)",
        ),
        (GOOD | {"question": "\ude00?"}, "the field 'question' has half a character (\\ude00 at position 0)"),
        (without("human_caption") | {"turns": [{"question": "?", "answer": "\ud83d"}]}, "the field 'answer' has half"),
        (without("human_caption") | {"sentences": [{"text": "\ud83d", "start_s": 0}]}, "the field 'text' has half"),
    ],
)
def test_bad_lines_are_set_aside(manifest_file, line, reason):
    path = manifest_file(GOOD | {"video_id": "first"}, line, GOOD | {"video_id": "last"})
    manifest = read_manifest(path)
    assert [example.key for example in manifest.examples] == ["first", "last"]
    (rejected,) = manifest.rejected
    assert rejected.where == "manifest.jsonl:2"
    assert reason in rejected.reason
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, strict=True)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert reason in str(caught.value)


def test_questions_in_mid_video_have_their_times_and_answers(manifest_file):
    """At once, when it is time, or never; where no caption is given, nothing is to be said before."""
    questions = [
        {"text": "What is it?", "video_s": 1, "answer": " A dog. ", "kind": "present"},
        {"text": "When?", "video_s": 2.5, "sentences": [{"text": "Now.", "start_s": 3}]},
        {"text": "Never?", "video_s": 4, "sentences": []},
    ]
    path = manifest_file(without("human_caption") | {"questions": questions}, GOOD | {"questions": questions[:1]})
    silent, captioned = read_manifest(path, strict=True).examples
    assert (silent.caption, silent.sentences) == ("", ())
    assert silent.questions == (
        Question("What is it?", 1.0, (Sentence("A dog.", 1.0),), "present"),
        Question("When?", 2.5, (Sentence("Now.", 3.0),)),
        Question("Never?", 4.0),
    )
    assert captioned.caption == GOOD["human_caption"].strip()
    assert captioned.questions == silent.questions[:1]


def test_characters_that_end_no_line_stay_in_captions(manifest_file):
    captions = [f"One.{cut}Two." for cut in "\v\f\x1c\x85\u2028\u2029"] + ["whole \U0001f600"]
    lines = [json.dumps(GOOD | {"human_caption": caption}, ensure_ascii=caption[4] < " ") for caption in captions]
    manifest = read_manifest(manifest_file(*lines))
    assert manifest.rejected == ()
    assert [example.caption for example in manifest.examples] == captions


def test_one_line_in_another_encoding_costs_itself_alone(manifest_file):
    path = manifest_file(GOOD, GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + json.dumps(GOOD).replace("square", "\xe9").encode("latin-1"))
    manifest = read_manifest(path)
    assert len(manifest.examples) == 2
    (rejected,) = manifest.rejected
    assert rejected.where == "manifest.jsonl:3"
    assert rejected.reason.startswith("not UTF-8 text: byte 0xe9")


def test_a_duration_is_a_hint(manifest_file):
    none = read_manifest(manifest_file(without("video_duration_in_s"), GOOD | {"video_duration_in_s": None}))
    assert [example.duration_s for example in none.examples] == [None, None]
    (part,) = read_manifest(manifest_file(without("video_duration_in_s") | {"start_s": 3})).examples
    assert (part.video.start_s, part.video.end_s, part.duration_s) == (3.0, None, None)


def test_another_root(manifest_file, tmp_path):
    path = manifest_file(GOOD)
    assert len(read_manifest(path, root=tmp_path / "videos").examples) == 1
    with pytest.raises(ManifestError, match=r"outside of the data root .*elsewhere"):
        read_manifest(path, root=tmp_path / "elsewhere")


def test_unusable_manifests(manifest_file, tmp_path):
    with pytest.raises(ManifestError, match=r"there is no manifest .*none\.jsonl"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match=r"manifest\.jsonl has no usable example: it is empty"):
        read_manifest(manifest_file())
    with pytest.raises(
        ManifestError, match=r"no usable example; the first of 2 bad lines is manifest\.jsonl:1: not JSON"
    ):
        read_manifest(manifest_file("{", "{}"))
    binary = Path(tmp_path / "binary.jsonl")
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ManifestError, match=r"binary\.jsonl cannot be read as UTF-8"):
        read_manifest(binary)


PIECES = [
    "A square. ",
    "\ud83d",
    "\ude00",
    "\udc80",
    "\U0001f600",
    "\0",
    "\u2028",
    "\x85",
    "\r\n",
    '\\"',
    "<|",
    "\u00e9",
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=4).map("".join) | st.sampled_from(
    ["videos/a.mp4", "~/a.mp4", "<|im_end|>", "x" * 5000, "gs://b/a"]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, 1e300, -0.0, 2**63])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | TEXTS, inner, max_size=3),
    max_leaves=6,
)
"""Whatever JSON may hold, in the fields that are read and in others."""
OBJECTS = (
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=8).map(lambda changes: GOOD | changes)
    | st.dictionaries(st.sampled_from(["human_caption", "question"]), TEXTS).map(lambda texts: GOOD | texts)
    | st.lists(st.fixed_dictionaries({"question": TEXTS, "answer": TEXTS}), min_size=1, max_size=3).map(
        lambda turns: without("human_caption") | {"turns": turns}
    )
)
LINES = OBJECTS.map(json.dumps).map(str.encode) | st.binary(max_size=40) | VALUES.map(json.dumps).map(str.encode)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES, max_size=4), end=st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_no_line_stops_a_manifest(manifest_file, tokenizer, lines, end):
    """Whatever stands in some lines, the sound one is read, the others are examples or rejected, and chats are made."""
    path = manifest_file(GOOD | {"video_id": "sound"})
    path.write_bytes(path.read_bytes() + end.join(lines))
    manifest = read_manifest(path)
    assert manifest.examples[0].key == "sound"
    for line in manifest.rejected:
        assert line.where.startswith("manifest.jsonl:")
        assert 0 < len(line.reason) < 5000
        line.reason.encode("utf-8")
    for example in manifest.examples:
        turns = (example.question or "?", example.caption), *example.later
        (question, answer), *later = turns
        has_special = any(token in text for token in DEFAULT_CHAT.added_tokens for turn in turns for text in turn)
        with pytest.raises(ExampleError, match="special token") if has_special else nullcontext():
            ids = encode_chat(tokenizer, question=question, answer=answer, later=later, video_grid_thw=(1, 2, 2))
            assert all(text in tokenizer.decode(ids) for turn in turns for text in turn)
