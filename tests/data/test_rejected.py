"""The list of bad examples: each once, kept over restarts, and a limit."""

import json

import pytest

from swjax.data.example import Rejected
from swjax.data.rejected import RejectedLog, TooManyRejectedError, check_rejected


def test_each_once_and_kept(tmp_path):
    path = tmp_path / "run" / "rejected.jsonl"
    log = RejectedLog(path)
    for key, reason in [("a", None), ("b", "damaged"), ("a", None), ("b", "damaged")]:
        log.note(key, reason)
    assert (log.num_seen, log.num_bad) == (2, 1)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"where": "b", "reason": "damaged"}]
    again = RejectedLog(path)
    again.note("b", "damaged")
    again.note("c", "too short")
    assert again.rejected == (Rejected("b", "damaged"), Rejected("c", "too short"))
    assert RejectedLog(path).rejected == again.rejected


def test_half_a_line_and_characters_that_end_none(tmp_path):
    path = tmp_path / "rejected.jsonl"
    RejectedLog(path).note("a\u2028b", "damaged")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_text().encode().decode("unicode_escape").encode() + b'{"where": "c')
    again = RejectedLog(path)
    again.note("d", "cut off")
    assert RejectedLog(path).rejected == (Rejected("a\u2028b", "damaged"), Rejected("d", "cut off"))


def test_nothing_is_written_without_bad_examples(tmp_path):
    log = RejectedLog(tmp_path / "rejected.jsonl")
    log.note("a")
    assert not log.path.exists()
    assert check_rejected(log, num_examples=1) == ()


def test_share_of_the_seen():
    log = RejectedLog(max_share=0.05)
    for i in range(5):
        log.note(f"bad{i}", "damaged")
    assert len(check_rejected(log, num_examples=1000)) == 5
    log.note("bad5", "cut off")
    with pytest.raises(TooManyRejectedError, match=r"6 of 6 examples .* share of 5%(.|\n)*bad0: damaged"):
        check_rejected(log, num_examples=1000)
    for i in range(200):
        log.note(f"good{i}")
    assert len(check_rejected(log, num_examples=1000)) == 6


def test_small_sets_and_all_bad():
    log = RejectedLog(max_share=0.05)
    log.note("a", "damaged")
    with pytest.raises(TooManyRejectedError):
        check_rejected(log, num_examples=10)
    lenient = RejectedLog(max_share=1)
    lenient.note("a", "damaged")
    assert len(check_rejected(lenient, num_examples=2)) == 1
    with pytest.raises(TooManyRejectedError):
        check_rejected(lenient, num_examples=1)


def test_foreign_file(tmp_path):
    path = tmp_path / "rejected.jsonl"
    path.write_text('{"where": "a", "reason": "b"}\nhello\n')
    with pytest.raises(ValueError, match=r"rejected\.jsonl:2 is not a line of a list of rejected examples"):
        RejectedLog(path)
    with pytest.raises(ValueError, match="max_share must be between 0 and 1, got 5"):
        RejectedLog(max_share=5)
