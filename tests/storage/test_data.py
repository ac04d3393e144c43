"""Manifests, videos and records in buckets read as those on disk, with a share of all requests going wrong."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import stores
from rich.console import Console

from swjax.commands.main import main
from swjax.data.builders.prepare import prepare_records
from swjax.data.builders.recipe import Recipe
from swjax.data.manifest import ManifestError
from swjax.data.moving_shapes.prepare import prepare
from swjax.data.records import RecordsError
from swjax.data.sources import open_source
from swjax.data.video import decode_video
from swjax.storage import as_path, copy_file, list_files
from swjax.training.environment import fingerprint_data


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A manifest of three videos, and its records beside it."""
    folder = tmp_path_factory.mktemp("clips")
    prepare(folder, train=3, validation=1, test=1, seed=0, workers=1, console=Console(quiet=True))
    prepare_records("manifest", folder / "train" / "manifest.jsonl", folder / "records", Recipe(min_pixels=28 * 28))
    return folder


def uploaded(folder: Path, url: str):
    for name in list_files(folder):
        copy_file(folder / name, as_path(url) / name)
    return as_path(url)


def assert_same_videos(left, right) -> None:
    assert [example.caption for example in left] == [example.caption for example in right]
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(*(decode_video(example.video) for example in (one, other)))


def test_a_manifest_and_its_videos(store, clips):
    folder = uploaded(clips / "train", store[0])
    with store[1].failing(every=5):
        found = open_source(folder / "manifest.jsonl")
        assert not found.rejected
        examples = pickle.loads(pickle.dumps(found.examples))  # as workers get them
        assert_same_videos(examples, open_source(clips / "train" / "manifest.jsonl").examples)
    names = ",".join([str(folder / "manifest.jsonl")])
    digests = fingerprint_data(names), fingerprint_data(str(clips / "train" / "manifest.jsonl"))
    assert [*digests[0].values()] == [*digests[1].values()]


def test_videos_that_are_not_there_or_lie_elsewhere_are_skipped(gcs, clips):
    folder = as_path("gs://bucket/skipped")
    lines = (clips / "train" / "manifest.jsonl").read_text().splitlines()
    name = open_source(clips / "train" / "manifest.jsonl").examples[0].video.name
    bad = [lines[0].replace(name, other) for other in ("gone.mp4", "../../other/a.mp4")]
    bad.append(lines[0].replace('"video_path": "', '"video_path": "gs://another/'))
    (folder / "manifest.jsonl").write_text("\n".join(bad) + "\n")
    with pytest.raises(
        ManifestError, match=r"3 bad lines is manifest.jsonl:1: there is no video file gs://bucket/skip"
    ):
        open_source(folder / "manifest.jsonl")
    with pytest.raises(ManifestError, match=r"there is no manifest gs://bucket/skipped/none\.jsonl"):
        open_source(folder / "none.jsonl")


def test_records(store, clips):
    folder = uploaded(clips / "records", store[0])
    with store[1].failing(every=5):
        found = pickle.loads(pickle.dumps(open_source(f"{folder}:train").examples))
        assert_same_videos(found, open_source(clips / "records").examples)
        assert len(found[1:3]) == 2


def test_a_shard_that_is_missing_or_cut_off_is_named(gcs, clips, tmp_path):
    shutil.copytree(clips / "records", tmp_path / "records")
    shard = next((tmp_path / "records").rglob("*.array_record*"))
    shard.write_bytes(shard.read_bytes()[:-1000])
    folder = uploaded(tmp_path / "records", "gs://bucket/cut")
    with pytest.raises(ValueError, match=r"record 0 of gs://bucket/cut.*:train is damaged"):
        open_source(folder).examples[0]
    next(folder / name for name in list_files(folder) if ".array_record" in name).unlink()
    with pytest.raises(RecordsError, match=r"gs://bucket/cut.* is missing"):
        open_source(folder)


def test_moving_shapes_are_rendered_into_a_bucket(store, clips, capsys):
    words = ["prepare", "moving_shapes", "--output", store[0], "--train", "3", "--validation", "1", "--test", "1"]
    with store[1].failing(every=12):
        assert main([*words, "--workers", "1"]) == 0
        made = {name: (as_path(store[0]) / name).read_bytes() for name in list_files(as_path(store[0]))}
    on_disk = {name: (clips / name).read_bytes() for name in list_files(clips) if not name.startswith("records/")}
    assert made == on_disk
    assert main([*words, "--workers", "1"]) == 0
    assert "3 of them made before" in capsys.readouterr().out
    assert main([*words, "--workers", "1", "--seed", "1"]) == 2
    assert f"{store[0]} holds a data set made with" in " ".join(capsys.readouterr().err.split())


def test_films_are_rendered_into_a_bucket(gcs):
    words = ["--train", "1", "--validation", "0", "--test", "0", "--seconds", "30", "--workers", "1"]
    assert main(["prepare", "moving_shapes_live", "--output", "gs://bucket/films", *words]) == 0
    (film,) = open_source("gs://bucket/films/train/manifest.jsonl").examples
    assert film.questions


def test_records_are_made_in_a_bucket_and_replaced_when_asked(store, clips, capsys):
    folder = as_path(store[0])
    source = uploaded(clips / "train", f"{store[0]}/clips") / "manifest.jsonl"
    words = ["prepare", "manifest", "--source", str(source), "--output", f"{store[0]}/data", "--min-pixels", "784"]
    words += ["--workers", "0"]
    with store[1].failing(every=12):
        assert main(words) == 0
        assert_same_videos(open_source(f"{folder}/data:train").examples, open_source(clips / "records").examples)
    before = {name: (folder / name).stat().mtime for name in list_files(folder)}
    assert main(words) == 0
    assert {name: (folder / name).stat().mtime for name in list_files(folder)} == before, "made once"
    capsys.readouterr()

    source.write_text(source.read_text() + "no JSON\n")
    assert main(words) == 2
    assert f"{store[0]}/data/manifest" in (said := " ".join(capsys.readouterr().err.split()))
    assert "of another source or recipe" in said
    assert main([*words, "--overwrite"]) == 2
    assert f"all are listed in {store[0]}/data/manifest" in " ".join(capsys.readouterr().err.split())
    (rejected,) = (folder / name for name in list_files(folder) if name.endswith("rejected.jsonl"))
    assert "not JSON" in rejected.read_text()
    assert len(open_source(f"{folder}/data:train").examples) == 3, "what was there is still there"

    orphan = next(folder / name for name in list_files(folder) if ".array_record" in name)
    copy_file(orphan, orphan.parent / "manifest-train.array_record-00001-of-00002")
    assert main([*words, "--overwrite", "--max-rejected", "0.5"]) == 0
    assert len(open_source(f"{folder}/data:train").examples) == 3
    assert sum(".array_record" in name for name in list_files(folder)) == 1


def test_the_documented_commands_make_data_in_a_bucket(gcs, capsys):
    render, record, inspect = stores.documented(1)[:3]
    assert main([*render, "--train", "2", "--validation", "0", "--test", "0", "--workers", "1"]) == 0
    assert main([*record, "--workers", "0"]) == 0
    pixels = ["--min-pixels", "784", "--max-pixels", "3136", "--sheets", "1"]
    assert main([*inspect, *pixels]) == 0
    assert "2 usable" in capsys.readouterr().out
    assert sorted(list_files(as_path(inspect[-1]))) == ["example_0.png", "histograms.png", "statistics.json"]
    assert main(["data", "inspect", f"{render[-1]}/train/manifest.jsonl", *pixels]) == 0
    assert "format manifest" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "format"), [("a.json", "auto"), ("a.jsonl", "sharegpt")])
def test_formats_that_are_read_from_disk_alone_say_so(gcs, name, format):
    with pytest.raises(ManifestError, match=rf"gs://bucket/{name} is in a bucket, where data are manifests"):
        open_source(f"gs://bucket/{name}", format=format)
