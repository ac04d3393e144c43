"""Data sets of the Hugging Face Hub, read from a stand-in for it on loopback, and never written to."""

import pytest
import stores
from huggingface_hub import constants
from rich.console import Console

from swjax.commands.main import main
from swjax.data.builders.prepare import prepare_records
from swjax.data.builders.recipe import Recipe
from swjax.data.moving_shapes.prepare import prepare
from swjax.data.sources import open_source
from swjax.data.video import decode_video
from swjax.storage import as_path, check_access, list_files, read_range


@pytest.fixture
def hub(_environment, tmp_path, monkeypatch):
    """hf://datasets/owner/name, and the folder that has the same files."""
    proxy = stores.Proxy()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, proxy.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", proxy.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    folder = tmp_path / "hub"
    prepare(folder, train=2, validation=0, test=0, seed=0, workers=1, console=Console(quiet=True))
    prepare_records("manifest", folder / "train" / "manifest.jsonl", folder / "records", Recipe(min_pixels=28 * 28))
    with stores.hub_of(folder, proxy):
        yield "hf://datasets/owner/name", folder, proxy
    proxy.close()


def test_manifests_and_records_of_the_hub_are_read(hub):
    url, folder, proxy = hub
    check_access(as_path(url))
    with proxy.failing(every=9):
        assert list_files(as_path(url)) == list_files(folder)
        assert (
            read_range(as_path(url) / "train" / "manifest.jsonl", 3, 40)
            == ((folder / "train" / "manifest.jsonl").read_bytes()[3:40])
        )
        for name in ("train/manifest.jsonl", "records:train"):
            found, expected = (open_source(f"{place}/{name}").examples for place in (url, folder))
            assert [example.caption for example in found] == [example.caption for example in expected]
            for one, other in zip(found, expected, strict=True):
                assert (decode_video(one.video) == decode_video(other.video)).all()
    assert proxy.faults


def test_the_hub_is_not_written_to(capsys):
    url = "hf://datasets/owner/name"
    for words in (
        ["prepare", "moving_shapes", "--output", f"{url}/data"],
        ["train", "--config", "configs/moving_shapes.py", "--run-dir", f"{url}/run"],
        ["report", "--table", "docs/results/variants/results.csv", "--output", f"{url}/report", "--no-figures"],
    ):
        assert main(words) == 2
        assert "is on the Hugging Face Hub, which is read alone here" in " ".join(capsys.readouterr().err.split())
