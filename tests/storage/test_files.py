"""Files in buckets read, written, copied and cached, with a share of all requests going wrong."""

import os

import pytest

from swjax import atomic
from swjax.storage import (
    StorageError,
    as_path,
    check_access,
    copy_file,
    file_size,
    list_files,
    local_file,
    local_folder,
    open_log,
    read_range,
    remove_folder,
    sync_logs,
    writing_folder,
)

CONTENT = bytes(range(256)) * 1200


def test_files_come_and_go_whole_while_requests_fail(store, tmp_path):
    url, proxy = store
    folder = as_path(url)
    (tmp_path / "a.bin").write_bytes(CONTENT)
    with proxy.failing(every=5):
        copy_file(tmp_path / "a.bin", folder / "deep" / "a.bin")
        atomic.write_text(folder / "note.json", "{}\n")
        with atomic.replacing(folder / "b.bin") as partial:
            partial.write_bytes(CONTENT[:5000])
        copy_file(folder / "b.bin", folder / "deep" / "b.bin")
        assert list_files(folder) == {"deep/a.bin": len(CONTENT), "deep/b.bin": 5000, "note.json": 3, "b.bin": 5000}
        assert file_size(folder / "deep" / "a.bin") == len(CONTENT)
        for start, stop in ((0, 10), (300_000, len(CONTENT)), (7, 7)):
            assert read_range(folder / "deep" / "a.bin", start, stop) == CONTENT[start:stop]
        copied = local_file(folder / "deep" / "a.bin")
        assert copied.read_bytes() == CONTENT
        assert {file.name for file in local_folder(folder, ("*.json", "deep/b.*")).rglob("*.*")} == {
            "note.json",
            "b.bin",
        }
        copy_file(folder / "b.bin", tmp_path / "b.bin")
        assert (tmp_path / "b.bin").read_bytes() == CONTENT[:5000]
        with writing_folder(folder / "profile") as staged:
            (staged / "x").mkdir()
            (staged / "x" / "trace").write_text("t")
        assert (folder / "profile" / "x" / "trace").read_text() == "t"
        remove_folder(folder / "deep")
    assert sorted(list_files(folder)) == ["b.bin", "note.json", "profile/x/trace"]
    assert proxy.faults >= 5


def test_what_fails_to_be_written_leaves_the_old_file(store):
    file = as_path(store[0]) / "state.txt"
    atomic.write_text(file, "old")

    def write_half() -> None:
        with atomic.replacing(file) as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert file.read_text() == "old"


def test_a_file_that_changed_is_fetched_again(store, monkeypatch):
    monkeypatch.setattr("swjax.storage.cache._known", {})
    file = as_path(store[0]) / "a.txt"
    file.write_text("old")
    first = local_file(file)
    assert local_file(file) == first
    file.write_text("new")
    monkeypatch.setattr("swjax.storage.cache._known", {})
    assert local_file(file).read_text() == "new"
    assert first.read_text() == "old"


def test_the_cache_stays_within_its_bound(gcs, monkeypatch, tmp_path):
    monkeypatch.setenv("SWJAX_CACHE", str(tmp_path))
    monkeypatch.setenv("SWJAX_CACHE_GB", "2.5e-6")  # 2,500 bytes
    folder = as_path("gs://bucket/bounded")
    for number in range(4):
        (folder / f"{number}.bin").write_bytes(bytes(1000))
        copy = local_file(folder / f"{number}.bin")
        os.utime(copy.parent, (number, number))  # used long ago
    assert sorted(file.name for file in tmp_path.rglob("*.bin")) == ["2.bin", "3.bin"]
    assert local_file(folder / "0.bin").read_bytes() == bytes(1000)


def test_a_cache_that_cannot_be_trusted_or_measured_is_refused(gcs, monkeypatch, tmp_path):
    monkeypatch.setenv("SWJAX_CACHE", str(tmp_path))
    file = as_path("gs://bucket/refused/a.bin")
    file.write_bytes(CONTENT)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: -1)
        with pytest.raises(StorageError, match="belongs to another user; name a folder of your own with SWJAX_CACHE"):
            local_file(file)
    monkeypatch.setenv("SWJAX_CACHE_GB", "much")
    with pytest.raises(StorageError, match="SWJAX_CACHE_GB is 'much'; give a number of gigabytes"):
        local_file(file)


def test_a_log_grows_and_is_there_when_it_is_asked_for(store):
    file = as_path(store[0]) / "log.jsonl"
    file.write_text("before\n")
    with open_log(file) as log:
        log.write("one\n")
        assert file.read_text() == "before\n"
        with store[1].failing(every=2):
            sync_logs()
        assert file.read_text() == "before\none\n"
        log.write("two\n")
    assert file.read_text() == "before\none\ntwo\n"


def test_a_bucket_that_is_not_there_is_named(store):
    check_access(as_path(store[0]) / "any")
    with pytest.raises(StorageError, match="://nobody-has-this is not there"):
        check_access(as_path(store[0].partition("bucket")[0] + "nobody-has-this/run"))


def test_a_file_that_ends_early_is_named(tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    assert read_range(tmp_path / "a.bin", 3, 9) == CONTENT[3:9]
    with pytest.raises(OSError, match=rf"a.bin ends 2 bytes before byte {len(CONTENT) + 2}; copy it again"):
        read_range(tmp_path / "a.bin", 0, len(CONTENT) + 2)
