"""Where progress bars of checkpoints are drawn: on the standard error, as they are no part of what a command prints."""

from rich.console import Console

STDERR = Console(stderr=True)
