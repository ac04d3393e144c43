"""Records of manifests: what goes in comes out, and nothing bad comes in."""

import io
import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from damaged_files import DAMAGED, SOUND
from video_files import number_of, write_video

from swjax.commands.main import main
from swjax.data.builders import prepare as preparing
from swjax.data.builders.builder import SourceError
from swjax.data.builders.prepare import prepare_records
from swjax.data.builders.recipe import LeftOut, Recipe, make_record
from swjax.data.encoding import load_patches
from swjax.data.example import ExampleError, Question, Rejected, Sentence, VideoExample
from swjax.data.pipeline_config import PipelineConfig
from swjax.data.records import RecordsError, open_records
from swjax.data.video import decode_video
from swjax.inference import read_frames
from swjax.storage import as_path, copy_file

ANY = Recipe(min_pixels=28 * 28)
CAPTION = "The video shows a square that turns."


def line(name, **fields):
    return {
        "video_id": name,
        "video_path": f"{name}.mp4",
        "video_duration_in_s": 4.0,
        "human_caption": CAPTION,
    } | fields


def write_manifest(folder, lines):
    path = folder / "manifest.jsonl"
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return path


@pytest.mark.parametrize(
    "how", [{"workers": 0}, {"workers": 2}, {"beam_runner": "DirectRunner"}], ids=["here", "processes", "beam"]
)
def test_damage_is_set_aside_with_its_reason(tmp_path, how):
    for name, write in (DAMAGED | SOUND).items():
        write(tmp_path / f"{name}.mp4")
    bad_lines = ["{not json", line("gone"), line("elsewhere", video_path="/etc/hostname"), line("plain")]
    bad_lines += [line("mute", video_path="plain.mp4", human_caption=" ")]
    manifest = write_manifest(tmp_path, [*(line(name) for name in SOUND | DAMAGED), *bad_lines])
    made = prepare_records("manifest", manifest, tmp_path / "out", ANY, max_rejected=0.9, **how)
    records = open_records(tmp_path / "out", "train")
    assert {example.key for example in records} == set(SOUND)
    assert made.report["train"] == {"records": len(SOUND), "rejected": len(DAMAGED) + 5, "left_out": {}}
    reasons = {entry["where"]: entry["reason"] for entry in map(json.loads, made.rejected.read_text().splitlines())}
    assert len(reasons) == len(DAMAGED) + 5
    for name in set(DAMAGED) - {"folder"}:
        assert f"{name}.mp4" in reasons[name]
    assert "lies outside of the data root" in reasons[f"manifest.jsonl:{len(SOUND | DAMAGED) + 3}"]


@pytest.mark.parametrize("how", [{"workers": 0}, {"beam_runner": "DirectRunner"}], ids=["here", "beam"])
def test_too_much_damage_makes_nothing(tmp_path, how):
    write_video(tmp_path / "good.mp4", num_frames=96)
    (tmp_path / "bad.mp4").write_bytes(b"")
    manifest = write_manifest(tmp_path, [line("good"), line("bad")])
    with pytest.raises(SourceError, match=r"1 of 2 examples of train cannot be used.*--max-rejected(.|\n)*bad\.mp4"):
        prepare_records("manifest", manifest, tmp_path / "out", ANY, max_rejected=0.4, **how)
    with pytest.raises(RecordsError, match="there is no data set"):
        open_records(tmp_path / "out", "train")
    assert len(list((tmp_path / "out").rglob("rejected.jsonl"))) == 1


def test_records_hold_what_the_manifest_says(tmp_path):
    write_video(tmp_path / "long.mp4", num_frames=240)
    lines = [
        line("part", video_path="long.mp4", start_s=3.0, end_s=7.0, question="What?"),
        line(
            "timed",
            video_path="long.mp4",
            human_caption=None,
            sentences=[{"text": "A.", "start_s": 0}, {"text": "B.", "start_s": 2.5}],
            questions=[
                {"text": "?", "video_s": 1, "answer": "\u00e4.", "kind": "now"},
                {"text": "When?", "video_s": 2, "sentences": []},
            ],
        ),
        line(
            "chat",
            video_path="long.mp4",
            human_caption=None,
            turns=[{"question": "Q1", "answer": "A1"}, {"question": "Q2", "answer": "A2"}],
        ),
    ]
    prepare_records("manifest", write_manifest(tmp_path, lines), tmp_path / "out", ANY)
    examples = {example.key: example for example in open_records(tmp_path / "out", "train")}
    part = examples["part"]
    assert (part.question, part.duration_s, part.video.fps) == ("What?", 4.0, 2.0)
    assert [number_of(frame) for frame in decode_video(part.video)] == [72, 84, 96, 108, 120, 132, 144, 156]
    assert [number_of(frame) for frame in decode_video(part.video, fps=1.0)] == [72, 96, 120, 144]
    timed = examples["timed"]
    assert timed.caption == "A. B."
    assert [(sentence.text, sentence.time_s) for sentence in timed.sentences] == [("A.", 0.0), ("B.", 2.5)]
    assert timed.questions == (Question("?", 1.0, (Sentence("\u00e4.", 1.0),), "now"), Question("When?", 2.0))
    assert (examples["chat"].question, examples["chat"].caption, examples["chat"].later) == (
        "Q1",
        "A1",
        (("Q2", "A2"),),
    )


def test_the_same_recipe_is_not_made_again_and_another_is_refused(tmp_path):
    write_video(tmp_path / "a.mp4", num_frames=96)
    manifest = write_manifest(tmp_path, [line("a")])
    first = prepare_records("manifest", manifest, tmp_path / "out", ANY)
    time = (first.folder / "dataset_info.json").stat().st_mtime_ns
    assert prepare_records("manifest", manifest, tmp_path / "out", ANY) == first
    assert (first.folder / "dataset_info.json").stat().st_mtime_ns == time
    with pytest.raises(SourceError, match=r"another source or recipe .quality was 95, is 80"):
        prepare_records("manifest", manifest, tmp_path / "out", Recipe(min_pixels=28 * 28, quality=80))


def test_another_source_is_refused_named_or_put_in_the_place(tmp_path):
    write_video(tmp_path / "a.mp4", num_frames=96)
    write_video(tmp_path / "b.mp4", num_frames=96)
    out = tmp_path / "out"

    def make(lines, **how):
        return prepare_records("manifest", write_manifest(tmp_path, lines), out, ANY, **how)

    def keys(made):
        return [example.key for example in open_records(made.folder, "train")]

    first = make([line("a")])
    with pytest.raises(SourceError, match=r"digest of the source was '[0-9a-f]{64}'(.|\n)*--name(.|\n)*--overwrite"):
        make([line("b")])
    assert keys(first) == ["a"]
    with pytest.raises(SourceError, match="another source or recipe"):
        make([line("a", human_caption="The video shows something else.")])
    second = make([line("b"), "not JSON"], data_set="others", max_rejected=0.5)
    assert (keys(first), keys(second)) == (["a"], ["b"])
    assert second.folder.relative_to(out).parts[0] == "others"
    assert make([line("b"), "not JSON"], data_set="others", max_rejected=0.5) == second
    again = make([line("b")], overwrite=True)
    assert (again.folder, keys(again)) == (first.folder, ["b"])
    assert again.rejected.read_text() == ""
    write_video(tmp_path / "b.mp4", num_frames=144)
    with pytest.raises(SourceError, match="another source or recipe"):
        make([line("b")])
    with pytest.raises(SourceError, match="cannot be called 'My videos'; use small letters"):
        make([line("b")], data_set="My videos")


@pytest.mark.parametrize(("width", "height"), [(320, 176), (202, 118), (60, 42)])
def test_records_are_seen_at_the_size_of_the_video_itself(tmp_path, width, height):
    """Whatever they are kept at; frames that were shrunk to less than is wanted are refused."""
    frames = list(np.random.default_rng(0).integers(0, 255, (8, height, width, 3), np.uint8))
    path = write_video(tmp_path / "v.mp4", frames=frames, rate=2)
    kept = Recipe(min_pixels=28 * 28, max_pixels=112 * 112)
    manifest = write_manifest(tmp_path, [line("v")])
    (example,) = open_records(prepare_records("manifest", manifest, tmp_path / "out", kept).folder, "train")
    for max_pixels in (28 * 28, 56 * 56, 70 * 70, 112 * 112):
        budget = {"min_pixels": 28 * 28, "max_pixels": max_pixels}
        config = PipelineConfig(batch_size=1, max_tokens=2**12, max_patches=2**12, **budget)
        grids = [load_patches(video, config)[1] for video in (path, example.video)]
        assert grids[0] == grids[1]
        sizes = [next(read_frames(video, fps=2.0, **budget)).grid_hw for video in (path, example.video)]
        assert sizes == [grids[0][1:]] * 2
    more = replace(config, max_pixels=224 * 224)
    if width > 112:
        for load in (
            lambda: load_patches(example.video, more),
            lambda: next(read_frames(example.video, fps=2.0, min_pixels=28 * 28, max_pixels=224 * 224)),
        ):
            with pytest.raises(ExampleError, match=r"frames are kept at \d+ x \d+ pixels, and max_pixels 50176 wants"):
                load()
    else:
        assert load_patches(example.video, more)[1] == load_patches(path, more)[1], "nothing was lost in keeping it"


def add(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def test_pe_video(tmp_path, gcs):
    """WebDataset shards, one of them cut short, and the paper's limits."""
    clip = write_video(tmp_path / "clip.mp4", num_frames=144).read_bytes()  # 6 s
    short = write_video(tmp_path / "short.mp4", num_frames=96).read_bytes()
    fits = "word " * 23 + "word"  # four tokens a second, as the tokenizer counts
    samples = {
        "good": (clip, {"human_caption": fits, "video_id": 5}),
        "short": (short, {"human_caption": fits}),
        "terse": (clip, {"human_caption": "word"}),
        "mute": (clip, {"video_id": 3}),
    }
    (tmp_path / "release" / "train").mkdir(parents=True)
    with tarfile.open(tmp_path / "release" / "train" / "0001.tar", "w") as archive:
        for key, (video, fields) in samples.items():
            add(archive, f"{key}.mp4", video)
            add(archive, f"{key}.json", json.dumps(fields).encode())
        add(archive, "alone.mp4", clip)
    cut = tmp_path / "release" / "train" / "0002.tar"
    with tarfile.open(cut, "w") as archive:
        for key in ("first", "second"):
            add(archive, f"{key}.mp4", clip)
            add(archive, f"{key}.json", json.dumps({"human_caption": fits}).encode())
    cut.write_bytes(cut.read_bytes()[: 512 * 4 + len(clip) + len(clip) // 2 + 1024])
    recipe = Recipe(min_pixels=28 * 28, min_seconds=5, max_seconds=30, min_rate=2, max_rate=40)
    made = prepare_records("pe_video", tmp_path / "release", tmp_path / "out", recipe, max_rejected=0.6)
    assert {example.key for example in open_records(tmp_path / "out", "train")} == {"0001/good", "0002/first"}
    assert made.report["train"]["left_out"] == {"shorter than 5 s": 1, "no answer of 2 to 40 tokens a second": 1}
    reasons = {entry["where"]: entry["reason"] for entry in map(json.loads, made.rejected.read_text().splitlines())}
    assert "has no human_caption" in reasons["0001/mute"]
    assert "has no alone.json" in next(reason for where, reason in reasons.items() if where.endswith("0001.tar:alone"))
    assert "cut short" in reasons[str(cut)]
    bucket = as_path("gs://bucket/release")
    for file in (tmp_path / "release" / "train").iterdir():
        copy_file(file, bucket / "train" / file.name)
    there = prepare_records("pe_video", bucket, tmp_path / "from_bucket", recipe, max_rejected=0.6)
    assert there.report == made.report
    for one, other in zip(*(open_records(records.folder, "train") for records in (there, made)), strict=True):
        assert (one.key, one.caption, one.video.frames) == (other.key, other.caption, other.video.frames)
    with pytest.raises(SourceError, match=r"has no shards train/\*\.tar"):
        prepare_records("pe_video", tmp_path, tmp_path / "other", recipe)


@pytest.mark.parametrize("packed", [True, False], ids=["zip", "folder"])
def test_funqa(tmp_path, packed):
    release = tmp_path / "release"
    for folder, name in (("humor", "H_A_1.mp4"), ("magic", "M_A_2.mp4")):
        write_video(release / "train" / f"train_{folder}" / name, num_frames=144)
    entries = [
        {"visual_input": "H_A_1.mp4", "task": "H2", "instruction": "What?", "output": " A man falls.", "ID": 1},
        {"visual_input": "H_A_1.mp4", "task": "H2", "instruction": "Tell.", "output": "Somebody falls.", "ID": 2},
        {"visual_input": "H_A_1.mp4", "task": "H3", "instruction": "Why?", "output": "It is odd.", "ID": 3},
        {"visual_input": "H_A_1.mp4", "task": "H1", "instruction": "When?", "output": "[1, 5]", "ID": 4},
        {"visual_input": "M_A_2.mp4", "task": "M3", "instruction": "Why?", "output": "A trick.", "ID": 5},
        {"visual_input": "C_A_3.mp4", "task": "C2", "instruction": "What?", "output": "Gone.", "ID": 6},
        {"visual_input": "../../etc/H.mp4", "task": "H2", "instruction": "What?", "output": "Outside."},
        {"visual_input": "H_A_1.mp4", "task": "H2", "instruction": "What?"},
        "nonsense",
    ]
    (release / "FunQA_train.json").write_text(json.dumps(entries))
    if packed:
        with zipfile.ZipFile(release / "train.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted((release / "train").rglob("*.mp4")):
                archive.write(path, path.relative_to(release))
                path.unlink()
        for folder in sorted((release / "train").rglob("*"), reverse=True):
            folder.rmdir()
        (release / "train").rmdir()
    made = prepare_records("funqa", release, tmp_path / "out", ANY, max_rejected=0.6)
    examples = {example.key: example for example in open_records(tmp_path / "out", "train")}
    assert set(examples) == {"H_A_1/H2", "H_A_1/H3", "M_A_2/M3"}
    described = examples["H_A_1/H2"]
    assert (described.question, described.caption) == ("What?", "A man falls.")
    assert described.others == (("Tell.", "Somebody falls."),)
    assert made.report["train"]["rejected"] == 4


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"key": "\udcff"}, "key"),
        ({"video": Path("\udcff.mp4")}, "path of the video"),
        ({"caption": "A \ud83d"}, "answer"),
        ({"question": "\ud83d?"}, "question"),
        ({"others": (("?", "\ud83d"),)}, "answer"),
        ({"later": (("\ud83d", "!"),)}, "question"),
    ],
)
def test_half_a_character_in_a_release_is_set_aside(fields, name):
    example = VideoExample(**{"key": "a", "video": Path("a.mp4"), "duration_s": None, "caption": "A."} | fields)
    outcome = make_record(example, Recipe(min_rate=1))
    assert isinstance(outcome, Rejected)
    assert f"the {name} has half a character" in outcome.reason
    assert main(["data", "inspect", outcome.reason]) == 2, "it can be printed"


def test_limits(tmp_path):
    path = write_video(tmp_path / "v.mp4", num_frames=144)
    example = VideoExample("key", path, 6.0, "The video shows it all.", others=(("Q?", "Another answer."),))
    assert make_record(example, Recipe(max_seconds=4)) == LeftOut("key", "longer than 4 s")
    assert make_record(example, Recipe(min_seconds=6, max_seconds=6))["answers"] == [example.caption, "Another answer."]
    assert make_record(example, Recipe(prefix="The video shows"))["answers"] == [example.caption]
    assert make_record(example, Recipe(prefix="Nothing")) == LeftOut("key", "no answer begins with 'Nothing'")
    with pytest.raises(ValueError, match="min_seconds is 5, above max_seconds 2"):
        Recipe(min_seconds=5, max_seconds=2)


def test_download(tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **more: asked.update(more, name=name))
    preparing.download_release("pe_video", tmp_path)
    assert asked["name"] == "facebook/PE-Video"
    assert (asked["repo_type"], asked["local_dir"]) == ("dataset", tmp_path)
    assert asked["allow_patterns"] == ["train/*.tar", "test/*.tar"]
    with pytest.raises(SourceError, match="manifest is not on the Hub"):
        preparing.download_release("manifest", tmp_path)


def test_damaged_records(tmp_path):
    """A shard cut short or missing is refused when it is opened; a flipped byte costs its records alone."""
    rng = np.random.default_rng(0)
    for number in range(3):
        frames = rng.integers(0, 255, (8, 64, 64, 3), np.uint8)
        write_video(tmp_path / f"{number}.mp4", frames=list(frames), rate=2)
    manifest = write_manifest(tmp_path, [line(str(number)) for number in range(3)])
    folder = prepare_records("manifest", manifest, tmp_path / "out", ANY).folder
    (shard,) = folder.glob("*.array_record*")
    whole = shard.read_bytes()
    assert len(open_records(folder, "train")[:2]) == 2
    with pytest.raises(IndexError, match="has 3 records"):
        open_records(folder, "train")[3]
    with pytest.raises(RecordsError, match="has no split 'test'; it has train"):
        open_records(folder, "test")
    middle = whole.rindex(b"JFIF") + 100  # in the last frame that is stored; there is padding between the records
    shard.write_bytes(whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 64]) + whole[middle + 64 :])
    damaged = open_records(folder, "train")
    faults = []
    for number in range(3):
        try:
            assert damaged[number].caption == CAPTION
        except ExampleError as error:
            faults.append(str(error))
    assert len(faults) == 1
    assert ":train is damaged" in faults[0]
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordsError, match=r"array_record.* is damaged or cut short"):
        open_records(folder, "train")
    shard.unlink()
    with pytest.raises(RecordsError, match="is missing"):
        open_records(folder, "train")
