"""A small data set in the layout of each format: what is read of it, what is not and why, as commands see it."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from video_files import numbered_frame, write_video

from swjax.commands.main import main
from swjax.data.example import Picture, Sentence, VideoExample, VideoFile
from swjax.data.formats import FORMATS, Format, choose_format, read_examples
from swjax.data.manifest import ManifestError
from swjax.data.records import open_records
from swjax.data.video import iter_frames

CAPTION = "The video shows a red square that turns and leaves."


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """Three seconds."""
    frames = [numbered_frame(number // 12, 56, 56) for number in range(72)]
    return write_video(tmp_path_factory.mktemp("film") / "a.mp4", frames=frames)


@pytest.fixture
def put(film: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a file of JSON lines, or of one JSON document, beside videos/a.mp4."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(film.read_bytes())
    Image.new("RGB", (56, 56), "red").save(tmp_path / "a.jpg")

    def write(name: str, *records: Any) -> Path:
        path = tmp_path / name
        is_lines = name.endswith(".jsonl")
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        path.write_text("".join(f"{line}\n" for line in lines) if is_lines else lines[0], encoding="utf-8")
        return path

    return write


def read(path: Path, expected: str) -> tuple[list[VideoExample], dict[str, str]]:
    """The examples, and the reason of each that is skipped by its place; the format is found by looking."""
    assert choose_format(path).name == expected
    found = read_examples(path)
    return list(found.examples), {entry.where: entry.reason for entry in found.rejected}


def chat(*texts: str, who: tuple[str, str] = ("role", "content")) -> list[dict[str, str]]:
    names = ("user", "assistant") if who[0] == "role" else ("human", "gpt")
    return [{who[0]: names[number % 2], who[1]: text} for number, text in enumerate(texts)]


def test_sharegpt(put):
    image = {"messages": chat("<image>What is it?", "A dog."), "images": ["b.jpg"]}
    records = [
        {"messages": chat("<video>What happens?", CAPTION), "videos": ["videos/a.mp4"], "id": "first"},
        {"conversations": chat("<video>", CAPTION, who=("from", "value")), "video": "videos/a.mp4"},
        {"messages": [{"role": "system", "content": "Be short."}, *chat("<video>\nWho?", "He.", "Why?", "So.")]}
        | {"videos": ["videos/a.mp4"]},
        image,
        {"messages": chat("Hello", "Hello."), "videos": []},
        {"messages": chat("<video><video>Which?", "This."), "videos": ["videos/a.mp4", "videos/a.mp4"]},
        {"messages": [{"role": "user", "content": 3}], "videos": ["videos/a.mp4"]},
        {"messages": [{"role": "tool", "content": "x"}], "videos": ["videos/a.mp4"]},
        {"messages": chat("<video>What?"), "videos": ["videos/a.mp4"]},
        {"messages": chat("<video>What?", "It."), "videos": ["videos/none.mp4"]},
        {"messages": chat("What?", "It.", "<video>And?", "That."), "videos": ["videos/a.mp4"]},
    ]
    examples, skipped = read(put("data.jsonl", *records), "sharegpt")
    assert [(example.question, example.caption, example.later) for example in examples] == [
        ("What happens?", CAPTION, ()),
        (None, CAPTION, ()),
        ("Who?", "He.", (("Why?", "So."),)),
        ("Hello", "Hello.", ()),
        ("Which?<video><video>", "This.", ()),
        ("What?", "It.", (("And?<video>", "That."),)),
    ]
    assert [example.key for example in examples[:3]] == ["first", "data.jsonl:2", "data.jsonl:3"]
    assert [example.system for example in examples] == [None, None, "Be short.", None, None, None]
    assert [example.video is None for example in examples] == [False, False, False, True, True, True]
    for line, words in {
        4: "b.jpg",
        7: "messages[0].content must be text or a list of parts, found the number 3",
        8: "messages[0] is said by 'tool'; known are user, human",
        9: "messages must be questions and answers in turn, user first; there speak user",
        10: "there is no video file",
    }.items():
        assert words in skipped[f"data.jsonl:{line}"]
    with pytest.raises(
        ManifestError, match=r"read as sharegpt, has no usable example; the first of 1 is data\.jsonl:1"
    ):
        read_examples(put("data.jsonl", image))


def test_chats_about_images_and_several_videos(put, tmp_path: Path):
    def shown(*content: Any, answer: str = "It.") -> list[dict]:
        return [{"role": "user", "content": [*content]}, {"role": "assistant", "content": answer}]

    image, film, text = {"type": "image", "image": "a.jpg"}, {"type": "video"}, {"type": "text", "text": "Which?"}
    records = [
        {"messages": chat("<image>\nWhat?", "Red.", "And <image>?", "Too."), "images": ["a.jpg"] * 2, "system": "Hi."},
        {"messages": chat("What?", "Red."), "images": [{"path": "a.jpg", "bytes": None}]},
        {"messages": shown(image, film, text), "videos": ["videos/a.mp4"]},
        {"messages": chat("<image><image>Which?", "This."), "images": ["a.jpg"]},
        {"messages": chat("<image>", "Red."), "images": [{"path": None, "bytes": "x"}]},
        {"messages": chat("<image>", "Red."), "images": ["../a.jpg"]},
    ]
    examples, skipped = read(put("data.jsonl", *records), "sharegpt")
    picture, video = Picture(tmp_path / "a.jpg"), tmp_path / "videos" / "a.mp4"
    assert [(example.question, example.later, example.media) for example in examples] == [
        ("<image>\nWhat?", (("And <image>?", "Too."),), (picture, picture)),
        ("<image>What?", (), (picture,)),
        ("<image>Which?<video>", (), (picture, video)),
    ]
    assert examples[0].system == "Hi."
    assert list(skipped.values()) == [
        "the field 'images' has 1 files, and the questions have 2 times <image>",
        "the field 'images' must name files, found the file itself; write it to a file, and name that",
        f"the image {tmp_path / '../a.jpg'} lies outside of the data root {tmp_path}; move it there, or name another "
        "root",
    ]


def test_a_dataset_info_names_columns_and_tags(put, tmp_path: Path):
    columns, tags = {"messages": "talk", "videos": "clips"}, {"role_tag": "who", "content_tag": "what", "user_tag": "Q"}
    info = {"mine": {"file_name": "data.json", "formatting": "sharegpt", "columns": columns}}
    info["mine"]["tags"] = tags | {"assistant_tag": "A"}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    talk = [{"who": "Q", "what": "<video>What?"}, {"who": "A", "what": CAPTION}]
    examples, skipped = read(put("data.json", [{"talk": talk, "clips": ["videos/a.mp4"]}, 7]), "sharegpt")
    assert [(example.question, example.caption) for example in examples] == [("What?", CAPTION)]
    assert skipped == {"data.json[1]": "expected a JSON object, found the number 7"}


def test_swift_and_alpaca(put):
    records = [
        {"query": "<video>What?", "response": CAPTION, "videos": ["videos/a.mp4"]},
        {"query": "Why?", "response": "So.", "history": [["<video>Who?", "He."]], "videos": ["videos/a.mp4"]},
        {"instruction": "Look.", "input": "What?", "output": CAPTION, "video": "videos/a.mp4"},
        {"query": "What?", "response": 5, "videos": ["videos/a.mp4"]},
        {"query": "What?", "response": "It.", "history": [["Who?"]], "videos": ["videos/a.mp4"]},
        {"query": "<image>What?", "response": "It.", "images": ["b.jpg"]},
    ]
    examples, skipped = read(put("data.jsonl", *records), "swift")
    assert [(example.question, example.caption, example.later) for example in examples] == [
        ("What?", CAPTION, ()),
        ("Who?", "He.", (("Why?", "So."),)),
        ("Look.\nWhat?", CAPTION, ()),
    ]
    assert skipped["data.jsonl:4"] == "the field 'response' must be text, found the number 5"
    assert skipped["data.jsonl:5"] == "history[0] must be a pair of question and answer"
    assert "there is no image file" in skipped["data.jsonl:6"]


def test_livecc_words_wait_for_their_times(put):
    def line(words: Any, **video: Any) -> list[dict]:
        shown = {"type": "video", "video": "videos/a.mp4", **video}
        user = {"role": "user", "content": [shown, {"type": "text", "text": "Say what you see."}]}
        return [user, {"role": "assistant", "content": [{"type": "text_stream", "text_stream": words}]}]

    words = [[1.0, 1.2, "Hello"], [1.2, 1.5, "there"], [1.5, 1.6, ","], [2.0, 2.4, "friend"], [2.4, 2.5, "."]]
    records = [
        line(words, video_start=1.0, video_end=3.0),
        line([[0.0, 0.2, "一只"], [0.5, 1.0, "狗"], [1.0, 1.1, "。"]]),
        line([[0, 1, "un"], [0.3, 0.5, "believ"], [0.5, 0.7, "able"], [0.7, 0.9, " work"]]),
        line([[0.0, "no end"]]),
        line("hello"),
        [0, 123, 456],  # where its lines begin, as such files end
    ]
    examples, skipped = read(put("data.jsonl", *records), "livecc")
    first, chinese, pieces = examples
    assert first.caption == "Hello there, friend."
    assert (first.question, first.video.start_s, first.video.end_s) == ("Say what you see.", 1.0, 3.0)
    assert [sentence.time_s for sentence in first.sentences] == pytest.approx([0, 0.2, 0.5, 1.0, 1.4])
    assert chinese.caption == "一只狗。"
    assert pieces.sentences == (Sentence("unbelievable", 0.0), Sentence("work", 0.7))
    assert skipped == {
        "data.jsonl:4": "text_stream[0] must be [start, end, text], found [0.0, 'no end']",
        "data.jsonl:5": "the field 'text_stream' must be a list of [start, end, text], found text",
    }


def test_dense_captions_find_their_videos(put):
    content = {
        "a": {"duration": 3.0, "timestamps": [[1.5, 3], [0, 1]], "sentences": ["It leaves.", "A square turns."]},
        "b": {"duration": 3.0, "timestamps": [[0, 1]], "sentences": ["It leaves."]},
        "c": {"duration": 3.0, "timestamps": [[0, 1], [1, 2]], "sentences": ["It leaves."]},
        "d": {"duration": "long", "timestamps": [[0, 1]], "sentences": ["It leaves."]},
    }
    (example,), skipped = read(put("train.json", content), "dense")
    assert (example.key, example.caption) == ("a", "A square turns. It leaves.")
    assert [sentence.time_s for sentence in example.sentences] == [0, 1.5]
    assert "there is no video called 'b' in" in skipped["train.json['b']"]
    assert "must be lists of one length" in skipped["train.json['c']"]
    assert "there is no video called 'd'" in skipped["train.json['d']"]


SRT = """1
00:00:00,500 --> 00:00:01,500
<i>A red square</i>
turns.

2
00:00:02,000 --> 00:00:02,900
♪

3
00:00:02,000 --> 00:00:02,900
It leaves &amp; ends.
"""


def test_subtitles_beside_films(film: Path, tmp_path: Path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.mp4").write_bytes(film.read_bytes())
    (tmp_path / "a.en.srt").write_bytes(("\ufeff" + SRT.replace("\n", "\r\n")).encode())
    (tmp_path / "b.vtt").write_text("WEBVTT\n\nNOTE none\n\n00:01.000 --> 00:02.000 align:start\n<v Ann>Hello.\n")
    (tmp_path / "c.srt").write_text("1\n00:00:xx --> 00:00:01,000\nHello.\n")
    examples, skipped = read(tmp_path, "subtitles")
    assert [(example.key, example.caption) for example in examples] == [
        ("a.mp4", "A red square turns. It leaves & ends."),
        ("b.mp4", "Hello."),
    ]
    assert examples[0].sentences == (Sentence("A red square turns.", 0.5), Sentence("It leaves & ends.", 2.0))
    assert skipped["c.mp4"].startswith("c.srt:2: '00:00:xx --> 00:00:01,000' are no times such as")
    assert skipped["d.mp4"] == "there are no subtitles beside it (d.srt or d.vtt)"


def test_folders_of_hugging_face_datasets(put, tmp_path: Path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    put("unused.json", [])
    rows = [
        {"messages": chat("<video>What?", CAPTION), "videos": ["../videos/a.mp4"]},
        {"messages": chat("<video>What?", CAPTION), "videos": ["../videos/none.mp4"]},
    ]
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    table = arrow.Table.from_pylist(rows)
    parquet.write_table(table, folder / "data" / "train-00000-of-00001.parquet")
    parquet.write_table(table, folder / "data" / "test-00000-of-00001.parquet")
    assert choose_format(folder).name == "sharegpt"
    found = read_examples(folder, root=tmp_path)
    assert [example.caption for example in found.examples] == [CAPTION]
    assert [entry.where for entry in found.rejected] == ["train-00000-of-00001.parquet[1]"]

    saved = tmp_path / "saved"
    saved.mkdir()
    with arrow.ipc.new_stream(saved / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table)
    (example,) = read_examples(saved, root=tmp_path).examples
    assert example.question == "What?"
    (saved / "data-00000-of-00001.arrow").write_bytes(b"not arrow")
    with pytest.raises(ManifestError, match=r"data-00000-of-00001\.arrow cannot be read"):
        read_examples(saved)


def test_webdataset_films_stay_in_their_shards(film: Path, tmp_path: Path):
    shards = tmp_path / "shards"
    shards.mkdir()
    samples = {
        "0001": {"caption": CAPTION, "question": "What?"},
        "0002": {"messages": chat("Who?", "He.", "Why?", "So."), "videos": ["0002.mp4"]},
        "0003": {"title": "none"},
        "0004": {"caption": 5},
    }
    with tarfile.open(shards / "00000.tar", "w") as archive:
        for name, fields in samples.items():
            (tmp_path / "fields.json").write_text(json.dumps(fields))
            archive.add(tmp_path / "fields.json", f"{name}.json")
            archive.add(film, f"{name}.mp4")
        archive.add(film, "0005.mp4")
    examples, skipped = read(shards, "webdataset")
    assert [(example.question, example.caption, example.later) for example in examples] == [
        ("What?", CAPTION, ()),
        ("Who?", "He.", (("Why?", "So."),)),
    ]
    assert len(list(iter_frames(examples[0].video, 2.0))) == 6
    assert [reason.split(";")[0] for reason in skipped.values()] == [
        "its JSON has none of the fields 'human_caption', 'caption', 'text', nor messages",
        "the field 'caption' must be text, found the number 5",
        "the archive has no 0005.json",
    ]
    assert [example.key for example in read_examples(shards / "00000.tar").examples] == [
        "00000.tar:0001",
        "00000.tar:0002",
    ]


def test_what_is_of_no_format_is_refused_by_its_fields(put, tmp_path: Path):
    with pytest.raises(ManifestError, match=r"of no known format; its first record has the fields 'film', 'words'"):
        choose_format(put("data.jsonl", {"film": "a.mp4", "words": "x"}))
    with pytest.raises(ManifestError, match=r"unknown format 'llava'; choose one of: auto, manifest, sharegpt"):
        choose_format(tmp_path, "llava")


def test_a_format_is_added_by_one_row(put, monkeypatch):
    def convert(record: dict[str, Any], folder: Path) -> dict[str, Any]:
        return {"video_path": record["film"], "human_caption": record["words"]}

    mine = Format("mine", "films and words", {"film": "the video"}, lambda _, record: "film" in (record or {}), convert)
    monkeypatch.setitem(FORMATS, "mine", mine)
    examples, _ = read(put("data.jsonl", {"film": "videos/a.mp4", "words": CAPTION}), "mine")
    assert [example.caption for example in examples] == [CAPTION]


def test_every_format_says_what_becomes_of_its_fields_in_the_documentation():
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    assert all(f"`{name}`" in text for name in FORMATS)


def test_inspect_prepare_and_the_keys_that_fit(put, film: Path, tmp_path: Path, capsys):
    films = tmp_path / "films"
    films.mkdir()
    (films / "a.mp4").write_bytes(film.read_bytes())
    (films / "a.srt").write_text(SRT)
    chats = put("data.jsonl", {"messages": chat("<video>What?", CAPTION), "videos": ["videos/a.mp4"], "score": 1})
    said = {}
    for source in (films, chats):
        assert main(["data", "inspect", str(source), "--max-pixels", "3136"]) == 0
        said[source] = " ".join(capsys.readouterr().out.split())
        output = tmp_path / f"records_{source.stem}"
        prepare = ["prepare", "manifest", "--source", str(source), "--output", str(output), "--workers", "0"]
        assert main([*prepare, "--max-pixels", "3136", "--format", "subtitles" if source == films else "auto"]) == 0
        (example,) = open_records(output / "manifest", "train")
        assert example.caption in (CAPTION, "A red square turns. It leaves & ends.")
        capsys.readouterr()
    assert "format subtitles" in said[films]
    assert "subtitles 1 the answer, each line from its second on" in said[films]
    assert "score 1 left alone" in said[chats]
    # 3 frames of 16 patches, which are 4 tokens each; rows round up.
    for key in ("max_tokens=64", "max_patches=64", "max_labels=16", "max_pixels=3136", "fps=2"):
        assert f"--config.data.{key}" in said[chats]


def test_a_clip_of_a_film_is_a_part_of_the_file(put):
    record = {"type": "video", "video": "videos/a.mp4", "video_start": 1.0, "video_end": 0.5}
    user = {"role": "user", "content": [record]}
    stream = {"role": "assistant", "content": [{"type": "text_stream", "text_stream": [[1, 2, "Hello"]]}]}
    with pytest.raises(ManifestError, match=r"the clip would begin at 1 s and end at 0\.5 s"):
        read_examples(put("data.jsonl", [user, stream]))
    record["video_end"] = 2.0
    (example,) = read_examples(put("data.jsonl", [user, stream])).examples
    assert isinstance(example.video, VideoFile)
    assert np.isclose(example.video.end_s - example.video.start_s, 1.0)
