"""What a user should know of and what does not stop them, such as how files were read that leave room for doubt."""

import warnings


class Notice(UserWarning):
    """Something unusual about the user's files, and what was done about it."""


def notify(message: str) -> None:
    """Warn once more, whoever was warned before; the console script prints the message alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", Notice)
        warnings.warn(message, Notice, stacklevel=2)
