"""Manifests, videos and records in buckets read as those on disk, with a share of all requests going wrong."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

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
