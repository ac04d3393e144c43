"""Manifests: what a good line gives, and what is said of every kind of bad one."""

from pathlib import Path

import pytest

from swjax.data.manifest import ManifestError, read_manifest

GOOD = {"video_path": "videos/a.mp4", "video_duration_in_s": 1.0, "human_caption": " The video shows a square. "}


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
        (without("video_duration_in_s"), "the field 'video_duration_in_s' is missing"),
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
        (without("human_caption") | {"turns": []}, "the field 'turns' must be a list of objects, with one at least"),
        (without("human_caption") | {"turns": [{"question": "?"}]}, "the field 'answer' is missing"),
        (GOOD | {"sentences": [{"text": "a", "start_s": 0}]}, "'sentences' and 'human_caption' exclude each other"),
        (
            without("human_caption") | {"sentences": [{"text": "a", "start_s": 2}, {"text": "b", "start_s": 1}]},
            "start_s run backwards: [2.0, 1.0]",
        ),
        ("[" * 100_000, "not JSON"),
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
