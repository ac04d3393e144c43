import pytest

from swjax.data.text import glue_pieces, join_texts


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["Hello", "there", ",", "friend", "."], "Hello there, friend."),
        (["一只", "狗", "跑", "。", "它", "叫"], "一只狗跑。它叫"),
        (["สวัสดี", "ครับ"], "สวัสดีครับ"),
        (["안녕", "하세요"], "안녕 하세요"),  # Korean has spaces
        (["It", "'s", "he", "did", "n't", "(", "yet", ")"], "It's he didn't (yet)"),
        (["A dog runs.", "It barks."], "A dog runs. It barks."),
        (["And", "...", "then"], "And ... then"),
        ([], ""),
    ],
)
def test_words_join_as_their_script_writes_them(pieces: list[str], text: str) -> None:
    joined, starts = join_texts(pieces)
    assert joined == text
    assert [joined[start : start + len(piece)] for start, piece in zip(starts, pieces, strict=True)] == pieces


def test_pieces_that_bring_their_spaces_are_glued_where_they_have_none() -> None:
    pieces = [("un", 0.0), ("able", 0.1), (" to", 0.2), (" ", 0.3), ("go ", 0.4), ("on", 0.5)]
    assert glue_pieces(pieces) == [("unable", 0.0), ("to", 0.2), ("go", 0.4), ("on", 0.5)]
    assert glue_pieces([("a", 0.0), ("b", 1.0)]) == [("a", 0.0), ("b", 1.0)]
