"""Arguments that say what a stream keeps of what it has seen and said: `--memory window --memory.sources 4096`."""

import argparse
from typing import TYPE_CHECKING

from swjax.commands.say import UsageError

if TYPE_CHECKING:  # at run time it is imported where it is used, so that --help is quick
    from swjax.inference.memory import Memory

NUMBERS = {
    "sources": "tokens of the prompt and of frames that may be stored",
    "words": "newest words that stay",
    "first_words": "words from the beginning of the answer that stay beside them",
    "frames": "newest frames that stay (window)",
    "recent": "percent of the budget for the newest frames, which stay whole (infinipot_v, keydiff, streammem, vsb)",
    "alpha": "percent of the rest for keys unlike the newest, before norms of values (infinipot_v)",
    "proxy": "newest words that are run again to see what they attend to (streammem, vsb)",
    "buckets": "stretches of time over which sources are spread (vsb)",
    "top": "percent of the rest that is taken by attention alone (vsb)",
    "seed": "of what is drawn (random)",
    "positions": "what becomes of position ids (window): kept, contiguous, together, apart",
    "reanchor_at": "ids after which all are set back, together or apart (window)",
}
"""What the policies' own numbers mean, by name."""


def add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --memory and the numbers of its policies."""
    group = parser.add_argument_group("what is kept (docs/memory.md)")
    group.add_argument(
        "--memory",
        default="keep_all",
        metavar="POLICY",
        help="what is kept of what has been seen and said: keep_all (default), or a policy with a budget, with which a "
        "video may be of any length, as window: the question, the first words, and the newest frames and words",
    )
    for name, meaning in NUMBERS.items():
        group.add_argument(f"--memory.{name}", metavar="N", help=f"{meaning} (default: the policy's)")


def read_memory(args: argparse.Namespace) -> "Memory":
    """The policy that was asked for.

    Raises:
        UsageError: if there is none such, or it has no such number.
    """
    from swjax.inference.memory import memory_of

    given = [f"{name}={vars(args)[f'memory.{name}']}" for name in NUMBERS if vars(args)[f"memory.{name}"] is not None]
    text = args.memory
    if given:
        text += ("," if ":" in text else ":") + ",".join(given)
    try:
        return memory_of(text)
    except ValueError as error:
        raise UsageError(f"--memory: {error}") from error
