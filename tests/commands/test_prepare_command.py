"""`swjax prepare`, as it is called."""

import pytest

from swjax.commands.main import main


def run(*words: str) -> int:
    return main(["prepare", *words])


def test_it_says_what_it_made_and_where(tmp_path, capsys):
    words = ["--output", str(tmp_path), "--train", "2", "--validation", "1", "--test", "0", "--workers", "1"]
    assert run("moving_shapes", *words) == 0
    out = capsys.readouterr().out
    assert "train: 2 videos" in out
    assert "validation: 1 videos" in out
    assert str(tmp_path / "train" / "manifest.jsonl") in out
    assert len((tmp_path / "train" / "manifest.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "test").exists()


def test_bad_arguments_end_in_an_error_that_names_them(tmp_path, capsys):
    assert run("moving_shapes", "--output", str(tmp_path), "--train", "-5") == 2
    assert "number of train videos is -5" in capsys.readouterr().err
    assert run("moving_shapes", "--output", str(tmp_path), "--sed", "1") == 2
    assert "--sed" in capsys.readouterr().err


def test_unknown_data_sets_are_refused(capsys):
    with pytest.raises(SystemExit):
        run("moving_pictures")
    assert "moving_shapes" in capsys.readouterr().err
