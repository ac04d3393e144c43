"""The data set on disk: the same for any number of workers, resumed where it stopped, never mixed."""

import json
import signal
import subprocess
import sys
import time

import pytest

from swjax.data.manifest import read_manifest
from swjax.data.moving_shapes.grammar import SCORED_KINDS, Event, parse_caption
from swjax.data.moving_shapes.prepare import ASKED, PrepareError, prepare
from swjax.data.moving_shapes.scene import draw_scene

COUNTS = {"train": 8, "validation": 2, "test": 2}


def files_of(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "moving_shapes"
    return prepare(root, **COUNTS, seed=3, workers=1, size=64)


def test_manifests_hold_the_videos_and_their_captions(made):
    for split in made.splits:
        manifest = read_manifest(split.manifest)
        assert manifest.rejected == ()
        assert len(manifest.examples) == COUNTS[split.name] == split.num_videos
        scenes = [draw_scene((3, list(COUNTS).index(split.name), index)) for index in range(split.num_videos)]
        assert [example.caption for example in manifest.examples] == [scene.caption for scene in scenes]
        assert [example.duration_s for example in manifest.examples] == [scene.duration_s for scene in scenes]
        assert len({example.key for example in manifest.examples}) == split.num_videos


def test_events_stand_beside_the_manifest_with_their_times(made):
    for split in made.splits:
        examples = read_manifest(split.manifest).examples
        lines = [json.loads(line) for line in split.events.read_text().splitlines()]
        assert [line["video_id"] for line in lines] == [example.key for example in examples]
        for line, example in zip(lines, examples, strict=True):
            times = [event.pop("time_s") for event in line["events"]]
            shown = [event.pop("visible_s") for event in line["events"]]
            assert times[0] >= 0
            assert times == sorted(times)
            assert all(time <= visible <= example.duration_s for time, visible in zip(times, shown, strict=True))
            said = [event for event in parse_caption(example.caption).events if event.kind in SCORED_KINDS]
            assert [Event(**event) for event in line["events"]] == said


def test_each_video_is_asked_about_each_kind_of_event(made):
    """What is due is what is told of that kind, when it is told; where it never happens, nothing."""
    for split in made.splits:
        names = ("timed.jsonl", "asked.jsonl")
        timed, asked = (read_manifest(split.manifest.with_name(name), strict=True).examples for name in names)
        assert [one.key for one in asked] == [f"{one.key}-{kind}" for one in timed for kind in ASKED]
        assert {one.question for one in asked} == set(ASKED.values())
        for number, one in enumerate(timed):
            of_video = asked[number * len(ASKED) : (number + 1) * len(ASKED)]
            told = [sentence for of_kind in of_video for sentence in of_kind.sentences]
            assert sorted(told, key=lambda sentence: sentence.time_s) == list(one.sentences[1:]), "all but entering"
        assert any(not one.sentences and one.caption == "" for one in asked)


def test_the_number_of_workers_changes_nothing(made, tmp_path):
    prepare(tmp_path / "again", **COUNTS, seed=3, workers=2, size=64)
    assert files_of(tmp_path / "again") == files_of(made.root)


def test_another_seed_makes_other_videos(made, tmp_path):
    other = prepare(tmp_path / "other", train=2, validation=0, test=0, seed=4, workers=1, size=64)
    assert [split.name for split in other.splits] == ["train"]
    assert not set(files_of(other.root).values()) & set(files_of(made.root).values())


def test_what_is_missing_or_broken_is_made_again_and_the_rest_kept(made, tmp_path):
    root = tmp_path / "resumed"
    prepare(root, **COUNTS, seed=3, workers=1, size=64)
    videos = root / "train" / "videos"
    kept = (videos / "train-00002.mp4").stat().st_mtime_ns
    (root / "train" / "manifest.jsonl").unlink()
    (videos / "train-00000.mp4").unlink()
    (videos / "train-00000.mp4.partial").write_bytes(b"half")
    broken = (videos / "train-00001.mp4").read_bytes()[:-200]
    (videos / "train-00001.mp4").write_bytes(broken)
    again = prepare(root, **COUNTS, seed=3, workers=1, size=64)
    assert [split.num_reused for split in again.splits] == [6, 2, 2]
    assert (videos / "train-00002.mp4").stat().st_mtime_ns == kept
    assert files_of(root) == files_of(made.root)


def test_killed_and_started_again(made, tmp_path):
    root = tmp_path / "killed"
    arguments = {**COUNTS, "seed": 3, "workers": 1, "size": 64}
    script = f"from swjax.data.moving_shapes.prepare import prepare; prepare({str(root)!r}, **{arguments})"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(root.glob("train/videos/*.mp4")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(root.glob("train/videos/*.mp4"))
    assert not (root / "test" / "manifest.jsonl").exists()
    prepare(root, **arguments)
    assert files_of(root) == files_of(made.root)


def test_more_videos_can_be_added(made, tmp_path):
    prepare(tmp_path / "grown", train=3, validation=2, test=2, seed=3, workers=1, size=64)
    grown = prepare(tmp_path / "grown", **COUNTS, seed=3, workers=1, size=64)
    assert [split.num_reused for split in grown.splits] == [3, 2, 2]
    assert files_of(grown.root) == files_of(made.root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "holds a data set made with .*choose another folder"),
        ({"size": 96}, "holds a data set made with"),
        ({"train": -1}, "the number of train videos is -1"),
        ({"train": 0, "validation": 0, "test": 0}, "no split has any video"),
        ({"workers": 0}, "the number of workers is 0"),
        ({"size": 63}, "size of the videos is 63 pixels"),
        ({"seed": -1}, "the seed is -1"),
    ],
)
def test_what_cannot_be_made_is_refused_and_nothing_touched(made, changes, message):
    before = files_of(made.root)
    with pytest.raises(PrepareError, match=message):
        prepare(made.root, **{**COUNTS, "seed": 3, "size": 64, "workers": 1, **changes})
    assert files_of(made.root) == before


def test_a_broken_recipe_is_named(tmp_path):
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(PrepareError, match=r"recipe\.json is not JSON"):
        prepare(tmp_path, **COUNTS)
