"""Whatever stands in a record, it is read or skipped with a reason: nothing else is raised."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swjax.data.formats import FORMATS
from swjax.data.formats.format import read_source
from swjax.data.manifest import ManifestError

CHAT = [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "What?"}]}]
RECORDS = {
    "manifest": {"video_path": "a.mp4", "sentences": [{"text": "A.", "start_s": 0}], "video_id": "x"},
    "sharegpt": {"messages": [*CHAT, {"role": "assistant", "content": "It."}], "videos": [], "id": 3},
    "swift": {"query": "<video>What?", "response": "It.", "history": [["Who?", "He."]], "videos": ["a.mp4"]},
    "livecc": {
        "conversation": [
            {"role": "user", "content": [{"type": "video", "video": "a.mp4", "video_start": 0, "video_end": 2}]},
            {"role": "assistant", "content": [{"type": "text_stream", "text_stream": [[0, 1, "A"], [1, 2, "dog"]]}]},
        ]
    },
    "dense": {"video_id": "a", "duration": 2, "timestamps": [[0, 1], [1, 2]], "sentences": ["A.", "B."]},
}
ODD: tuple[Any, ...] = (
    *(None, True, -1, 1e400, 10**400, "", "  ", "<image>", "\ud83d", "a\0b", [], [[]], {}, {"bytes": "x"}),
    *([None], ["a.mp4", "a.mp4"], {"type": "image"}, [{"type": "text"}], "../a.mp4", "https://x/a.mp4", "x" * 5000),
)


def changed(value: Any) -> Iterator[Any]:
    """The value with one part of it at a time, however deep, replaced or left out."""
    yield from ODD
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        without = copy.copy(value)
        del without[key]
        yield without
        for other in changed(value[key]):
            with_other = copy.copy(value)
            with_other[key] = other
            yield with_other


@pytest.mark.parametrize("name", RECORDS)
def test_odd_records_are_read_or_skipped(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    records = [record for record in changed(RECORDS[name]) if isinstance(record, dict)]
    source = FORMATS[name]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in [RECORDS[name], *records]))
    found = read_source(path, source)
    seen = len(found.examples) + len(found.rejected)
    assert seen >= len(records) > 40
    assert all(entry.reason for entry in found.rejected)


@pytest.mark.parametrize("content", ["", "[]", "{}", "3", "nonsense", '{"a": 1}\n{"b"', "[1, 2]", '{"a": {"b": 1}}'])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_odd_files_are_refused(content: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_text(content)
    for found in FORMATS.values():
        if found.name in RECORDS:
            with pytest.raises(ManifestError, match=str(path)):
                read_source(path, found)


def test_subtitles_that_are_cut_off_anywhere_are_read_or_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    whole = "1\n00:00:01,000 --> 00:00:02,000\nA dog.\n\n2\n01:02 --> 99:99:99.9\n<b>{x\nIt --> runs\n"
    outcomes = set()
    for length in range(len(whole)):
        (tmp_path / "a.srt").write_text(whole[:length])
        try:
            (example,) = read_source(tmp_path, FORMATS["subtitles"]).examples
            outcomes.add(example.caption)
        except ManifestError as error:
            outcomes.add("refused, by name" if "a.srt" in str(error) else str(error))
    assert outcomes == {"A", "A d", "A do", "A dog", "A dog.", "refused, by name"}
