"""What a run folder says of its starts, whatever a crash has left there."""

from pathlib import Path

import pytest

from swjax.training.environment import ENVIRONMENT, changed_data, record_start, recorded_starts


@pytest.mark.parametrize("cut", [1, 40, -1], ids=["a byte", "in its middle", "all but the line end"])
def test_a_start_that_was_cut_off_stops_no_later_one(tmp_path: Path, cut: int) -> None:
    assert changed_data(tmp_path, {"a": "1"}) == []
    record_start(tmp_path, step=0, data={"a": "1"})
    file = tmp_path / ENVIRONMENT
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:cut])
    assert changed_data(tmp_path, {"a": "1", "b": "1"}) == []
    assert changed_data(tmp_path, {"a": "2"}) == ["a"]
    record_start(tmp_path, step=5, data={"a": "2"})
    assert [start["step"] for start in recorded_starts(tmp_path)] == [0, 5]
    assert file.read_bytes().startswith(whole)
    assert changed_data(tmp_path, {"a": "2"}) == []


def test_lines_that_were_run_together_are_left_out(tmp_path: Path) -> None:
    record_start(tmp_path, step=0, data={"a": "1"})
    file = tmp_path / ENVIRONMENT
    file.write_bytes(file.read_bytes() + b'{"time": "2026' + file.read_bytes() + b"\0\0\0\0\n")
    record_start(tmp_path, step=7)
    assert [start["step"] for start in recorded_starts(tmp_path)] == [0, 7]
