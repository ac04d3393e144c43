"""`swjax export --push`, with a stand-in for the Hub."""

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from swjax.commands.main import main

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_qwen2_5_vl"


class Hub:
    """Takes what is uploaded, or refuses."""

    def __init__(self, error: Exception | None = None):
        self.error, self.calls = error, []

    def create_repo(self, repository, **given):
        if self.error:
            raise self.error
        self.calls.append(("create", repository, given["private"], given["exist_ok"]))

    def upload_folder(self, *, folder_path, repo_id, **_):
        self.calls.append(("upload", repo_id, sorted(file.name for file in Path(folder_path).iterdir())))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


def export(monkeypatch, tmp_path, hub, *words):
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    return main(["export", "--checkpoint", str(GOLDEN), "--output", str(tmp_path / "out"), *words])


def test_the_whole_folder_is_uploaded(monkeypatch, tmp_path, capsys):
    hub = Hub()
    assert export(monkeypatch, tmp_path, hub, "--push", "some-one/model") == 0
    create, (what, repository, files) = hub.calls
    assert create == ("create", "some-one/model", True, True)
    assert (what, repository) == ("upload", "some-one/model")
    assert {"config.json", "model.safetensors", "streaming.py", "finetuning.py", "README.md"} <= set(files)
    assert "https://hub/some-one/model/commit/1" in capsys.readouterr().out


def test_a_dry_run_lists_files_and_sizes_and_uploads_nothing(monkeypatch, tmp_path, capsys):
    hub = Hub()
    assert export(monkeypatch, tmp_path, hub, "--push", "some-one/model", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert hub.calls == []
    files = list((tmp_path / "out").iterdir())
    for file in files:
        assert f"{file.stat().st_size:,} bytes  {file}" in shown
    assert f"these {sum(file.stat().st_size for file in files):,} bytes would be uploaded to some-one/model" in shown


def test_what_cannot_be_pushed_is_refused(monkeypatch, tmp_path, capsys):
    assert export(monkeypatch, tmp_path, Hub(ConnectionError("no route")), "--push", "some-one/model") == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "the Hub did not take it as some-one/model: no route; log in with `hf auth login`" in shown
    assert (tmp_path / "out" / "config.json").exists()
    assert export(monkeypatch, tmp_path, Hub(), "--dry-run") == 2
    for name in ("model", "a/b/c", "a//b", "a/--b"):
        with pytest.raises(SystemExit):
            export(monkeypatch, tmp_path, Hub(), "--push", name)
        assert "is no repository of the Hub" in " ".join(capsys.readouterr().err.split())
