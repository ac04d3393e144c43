"""JSON lines as people and programs leave them: line ends, byte order marks, encodings, half lines, odd numbers."""

import json

import pytest

from swjax.data.json_lines import JsonLineError, cut_half_line, parse_line, read_lines, readable_lines

# Characters at which str.splitlines() cuts; all but the first three may stand in JSON text as they are.
CUTS = "\v\f\x1c\x1d\x1e\x85\u2028\u2029"


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: f"U+{ord(cut):04X}")
def test_a_line_ends_at_line_feeds_alone(tmp_path, cut):
    path = tmp_path / "lines.jsonl"
    texts = [f"one{cut}two", f"three{cut}"]
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=cut < " ") + "\n" for text in texts), "utf-8")
    assert [(number, parse_line(line)["text"]) for number, line in read_lines(path)] == list(enumerate(texts, start=1))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "old mac"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_line_ends_and_a_byte_order_mark(tmp_path, end, mark):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(mark + f'{{"a": 1}}{end}  {end}{{"a": "\u00e9"}}{end}'.encode())
    assert [(number, parse_line(line)) for number, line in read_lines(path)] == [(1, {"a": 1}), (3, {"a": "\u00e9"})]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_encoding_is_named(tmp_path, encoding):
    path = tmp_path / "lines.jsonl"
    path.write_text('\ufeff{"a": 1}\n', encoding)
    with pytest.raises(JsonLineError, match="it is UTF-16; save it as UTF-8"):
        read_lines(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": "\xe9"}', "not UTF-8 text: byte 0xe9 at position 7"),
        (b'{"a": ', "not JSON: Expecting value at column 7"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON that can be read: a number has too many digits"),
        (b"[" * 100_000, "not JSON that can be read: nested too deeply"),
        (b'[{"a": 1}]', "expected a JSON object, found a list"),
        (b"1" + b"0" * 400, r"expected a JSON object, found the number 1(0){79}\.\.\. \(401 characters\)"),
        (b"null", "expected a JSON object, found null"),
    ],
)
def test_what_is_wrong_with_a_line(line, message):
    with pytest.raises(JsonLineError, match=message):
        parse_line(line)


def test_half_a_line_is_cut_off_and_whole_ones_are_kept(tmp_path):
    path = tmp_path / "log.jsonl"
    cut_half_line(path)
    assert not path.exists()
    for content, kept in ((b'{"a": 1}\n{"a": 2', b'{"a": 1}\n'), (b'{"a"', b""), (b"{}\n", b"{}\n"), (b"", b"")):
        path.write_bytes(content)
        cut_half_line(path)
        assert path.read_bytes() == kept


def test_spoiled_lines_of_a_log_are_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    assert list(readable_lines(path)) == []
    path.write_bytes(b'{"a": 1}\n{"a": {"a": 2}\n\0\0\0\n{"b": 3}\n{"a": 4}\n')
    assert list(readable_lines(path, ["a"])) == [{"a": 1}, {"a": 4}]
