from pathlib import Path

import pytest

from swjax.atomic import replacing, write_json, write_text


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("old")
    with replacing(file) as partial:
        partial.write_text("né")
        assert file.read_text() == "old"
    assert file.read_text(encoding="utf-8") == "né"
    write_text(file, "newer\n")
    write_json(tmp_path / "json", {"a": [1]})
    assert file.read_bytes() == b"newer\n"
    assert (tmp_path / "json").read_text() == '{\n  "a": [\n    1\n  ]\n}\n'
    assert {path.name for path in tmp_path.iterdir()} == {"text", "json"}


def test_what_cannot_be_written_leaves_the_old_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("old")
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    with pytest.raises(FileNotFoundError), replacing(file):
        (tmp_path / "nowhere").read_text()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
