"""Text that a tokenizer takes, and pieces of text put together."""

import re
from collections.abc import Sequence

from swjax.data.example import ExampleError


def check_text(text: str, name: str) -> str:
    r"""Return a text that is whole, and refuse one with half a character.

    JSON may hold one half of a surrogate pair, such as "\ud83d", which is what is left of an emoji where a program cut
    its text by UTF-16 units. It is no character: no tokenizer and no UTF-8 file takes it.

    Args:
        text: what was read.
        name: of the text, in messages.

    Raises:
        ExampleError: names the half character and where it stands.
    """
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ExampleError(
            f"the {name} has half a character ({ascii(text[error.start])[1:-1]} at position {error.start}), as a text "
            "that was cut within an emoji has; write the whole character, or leave it out"
        ) from error
    return text


# Scripts that put no spaces between words: Chinese, Japanese, Thai, Lao, Khmer and Burmese, and their punctuation.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uff9f\U00020000-\U0003ffff"
)
_CLOSING = re.compile(
    rf"(?!\.\.)[,.;:!?%)\]}}\u00bb\u201d\u2026]|[{UNSPACED}]|n?['\u2019](?:s|t|re|ve|ll|d|m)\b", re.IGNORECASE
)
_OPENING = re.compile(rf"[(\[{{\u00ab\u2018\u201c\u00bf\u00a1{UNSPACED}]$")


def join_texts(texts: Sequence[str]) -> tuple[str, list[int]]:
    """Words or sentences as one text, with spaces where their script has them.

    There is none between characters of scripts that know no spaces (Chinese, Japanese, Thai, ...), before punctuation
    that closes and endings such as 's, nor after what opens.

    Args:
        texts: the pieces, without blanks around them.

    Returns:
        The text, and where each piece begins in it.
    """
    joined, starts = "", list[int]()
    for piece in texts:
        attached = not joined or bool(_CLOSING.match(piece) or _OPENING.search(joined))
        joined += "" if attached else " "
        starts.append(len(joined))
        joined += piece
    return joined, starts


def glue_pieces(pieces: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Timed pieces of words as words: where pieces bring their own spaces, those without belong to the word before.

    Args:
        pieces: texts as they came, and when each begins.

    Returns:
        Words without blanks around them, each with the time of its first piece; blank pieces are left out.
    """
    brings_spaces = any(text[:1].isspace() for text, _ in pieces[1:])
    words: list[tuple[str, float]] = []
    open_end = False
    for text, start in pieces:
        if text.strip():
            if brings_spaces and words and not (text[:1].isspace() or open_end):
                words[-1] = (words[-1][0] + text.rstrip(), words[-1][1])
            else:
                words.append((text.strip(), start))
        open_end = text[-1:].isspace()
    return words
