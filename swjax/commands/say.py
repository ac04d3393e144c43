"""How the verbs speak: one console, and one way to refuse."""

import argparse
import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from swjax.notice import Notice
from swjax.storage import AnyPath, StorageError, as_path


class UsageError(ValueError):
    """A verb was asked for something that makes no sense; the message says what and how to mend it."""


SMALL_TOKENIZER = "tokens are counted with the small tokenizer of Moving Shapes; give --tokenizer for your model's"
"""What to say where a tokenizer was not chosen and its counts matter."""


def any_path(word: str) -> AnyPath:
    """An argument that takes a path on disk or in a bucket; what is neither stays as it is, for `main` to refuse."""
    try:
        return as_path(word)
    except StorageError:
        return Path(word)


def console() -> Console:
    """A console on the standard output that leaves numbers and paths uncoloured."""
    return Console(highlight=False, emoji=False)


def refuse(error: object) -> int:
    """Print an error that the user can mend; returns the exit status 2."""
    out = Console(highlight=False, stderr=True, emoji=False)
    out.print("[bold red]error:[/] ", end="")
    # Names of files and JSON may hold what no terminal's encoding can say.
    out.print(str(error).encode("utf-8", "backslashreplace").decode(), markup=False, soft_wrap=True)
    return 2


@contextlib.contextmanager
def printing_notices() -> Iterator[None]:
    """Print the words of each notice once, on the standard error, and other warnings as Python does."""
    with warnings.catch_warnings():
        others, said = warnings.showwarning, set[str]()

        def show(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
            if issubclass(category, Notice):
                if str(message) in said:
                    return
                said.add(str(message))
                out = Console(highlight=False, stderr=True, emoji=False)
                out.print(f"note: {message}", markup=False, soft_wrap=True)
            else:
                others(message, category, *where, **options)

        warnings.showwarning = show
        yield


def refusing(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace, Sequence[str]], int]:
    """Make a verb's `run` of a function: refuses arguments that nobody asked for, and turns known errors into words."""

    def checked(args: argparse.Namespace, extra: Sequence[str]) -> int:
        if extra:
            return refuse(f"swjax {args.verb} does not know {' '.join(extra)}; see swjax {args.verb} --help")
        try:
            return run(args)
        except known_errors() as error:
            return refuse(error)
        except KeyboardInterrupt:
            return 130

    return checked


def known_errors() -> tuple[type[Exception], ...]:
    """Errors whose message is for the user. Imported only when something has gone wrong."""
    from swjax.data.builders.builder import SourceError
    from swjax.data.example import ExampleError
    from swjax.data.manifest import ManifestError
    from swjax.data.moving_shapes.prepare import PrepareError
    from swjax.data.records import RecordsError
    from swjax.data.tokenizer import TokenizerError
    from swjax.evaluation import EvaluationError
    from swjax.hub import CheckpointError

    errors: tuple[type[Exception], ...] = (
        UsageError,
        CheckpointError,
        ExampleError,
        ManifestError,
        TokenizerError,
        EvaluationError,
        PrepareError,
        SourceError,
        RecordsError,
        StorageError,
    )
    return errors


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which model a verb uses."""
    parser.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="run folder, exported folder or Hub id of the model"
    )
    parser.add_argument("--step", type=int, help="which checkpoint of a run folder (default: the latest)")
