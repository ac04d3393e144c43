"""The argument that says when to speak."""

import argparse
from typing import TYPE_CHECKING

from swjax.commands.say import UsageError
from swjax.plain import Json

if TYPE_CHECKING:
    from swjax.streaming import StreamSpec
    from swjax.streaming.tokens import Tokenizer


def add_speaking_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the argument."""
    parser.add_argument(
        "--speak",
        metavar="RULE",
        help="when to speak: decide (the model says after each frame whether it has something to say), "
        "decide:threshold=0.7 (it is silent only where silence is at least so likely), always, never, "
        "timer:period=5,most=20, wait_k:k=3 (default: as trained)",
    )


def read_speaking(args: argparse.Namespace, record: "StreamSpec", tokenizer: "Tokenizer") -> Json:
    """The fields of `StreamSettings` that say when to speak.

    Args:
        args: of the verb.
        record: what the model was trained to do.
        tokenizer: the model's.

    Raises:
        UsageError: the rule cannot be used with the model.
    """
    from swjax.inference.voice import voice_of

    try:
        return voice_of(record, tokenizer, args.speak)
    except ValueError as error:
        raise UsageError(f"--speak {args.speak}: {error}") from error
