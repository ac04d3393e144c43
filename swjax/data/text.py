"""Text that a tokenizer takes."""

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
