"""Arguments that say what a stream keeps: `--memory window --memory.sources 4096`, `--drop dtd --drop.tau 0.25`."""

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from swjax.commands.say import UsageError
from swjax.streaming.spec import StreamSpec

if TYPE_CHECKING:  # at run time it is imported where it is used, so that --help is quick
    from swjax.inference.dropping import Drop
    from swjax.inference.memory import Memory

Made = TypeVar("Made")

MEMORY_NUMBERS = {
    "sources": "tokens of the prompt and of frames that may be stored",
    "words": "newest words that stay",
    "first_words": "words from the beginning of the answer that stay beside them",
    "frames": "newest frames that stay (window)",
    "recent": "percent of the budget for the newest frames, which stay whole (all that score, rekv)",
    "alpha": "percent of the rest for keys unlike the newest, before norms of values (infinipot_v)",
    "proxy": "newest words that are run again for what they attend to (streammem, vsb), or ask, too (rekv)",
    "buckets": "stretches of time over which sources are spread (vsb)",
    "top": "percent of the rest that is taken by attention alone (vsb)",
    "block": "tokens that go to the host, and come back, together; 0 for those of a frame (rekv)",
    "host_mb": "megabytes of host memory for what has left the device; beyond them the oldest is forgotten (rekv)",
    "seed": "of what is drawn (random)",
    "positions": "what becomes of position ids (window, rekv): kept, contiguous, together, apart",
    "reanchor_at": "ids after which all are set back, together or apart (window, rekv)",
}
"""What the policies' own numbers mean, by name."""

DROP_NUMBERS = {
    "tau": "bound on the likeness to the frame before (dtd), or on the difference of pixels from it (dtd_pixels)",
    "against": "what a place is compared with (dtd): previous, last_kept",
    "temporal": "bound on the likeness to the frame before (mssavt)",
    "spatial": "bound on the likeness to a neighbor (mssavt)",
    "share": "of a frame's tokens that stays (evs, vidcom2, random, uniform)",
    "seed": "of what is drawn (random)",
}
"""What the rules' own numbers mean, by name."""


def add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --memory and --drop, and the numbers of their policies and rules."""
    group = parser.add_argument_group("what is kept (docs/memory.md)")
    group.add_argument(
        "--memory",
        metavar="POLICY",
        help="what is kept of what has been seen and said (default: as config.memory of the run says, or keep_all): "
        "keep_all, or a policy with a budget, with which a video may be of any length: window (the question, the first "
        "words, and the newest frames and words), uniform, random, infinipot_v, keydiff, ma_lmm, streammem, vsb, "
        "peak_end, rekv (all others on the host, fetched by the question)",
    )
    _add_numbers(group, "memory", MEMORY_NUMBERS)
    group.add_argument(
        "--drop",
        metavar="RULE",
        help="which tokens of a frame are dropped before the decoder (default: as in training): none, dtd, dtd_pixels, "
        "mssavt, evs, vidcom2, random, uniform",
    )
    _add_numbers(group, "drop", DROP_NUMBERS)


def read_memory(args: argparse.Namespace, record: StreamSpec | None = None) -> "Memory":
    """The policy that was asked for, or else the one that the model's record has.

    Raises:
        UsageError: if there is none such, or it has no such number.
    """
    from swjax.inference.memory import memory_of

    return _read(args, "memory", MEMORY_NUMBERS, memory_of, record)


def read_drop(args: argparse.Namespace, record: StreamSpec | None = None) -> "Drop | None":
    """The rule of dropping that was asked for, or else the one that the model's record has; None for none.

    Raises:
        UsageError: if there is none such, or it has no such number.
    """
    from swjax.inference.dropping import drop_of

    return _read(args, "drop", DROP_NUMBERS, drop_of, record)


def _add_numbers(group: Any, of: str, numbers: Mapping[str, str]) -> None:
    for name, meaning in numbers.items():
        group.add_argument(f"--{of}.{name}", metavar="N", help=f"{meaning} (default: its own)")


def _read(
    args: argparse.Namespace,
    of: str,
    numbers: Mapping[str, str],
    make: Callable[[str], Made],
    record: StreamSpec | None,
) -> Made:
    try:
        return make(_named(args, of, numbers, record or StreamSpec()))
    except ValueError as error:
        raise UsageError(f"--{of}: {error}") from error


def _named(args: argparse.Namespace, of: str, numbers: Mapping[str, str], record: StreamSpec) -> str:
    """A policy or rule with its numbers as one text: name:number=8,other=9."""
    given = {name: vars(args)[f"{of}.{name}"] for name in numbers}
    text = str(getattr(record, of) if vars(args)[of] is None else vars(args)[of])
    words = [f"{name}={value}" for name, value in given.items() if value is not None]
    return text + ("," if ":" in text else ":") + ",".join(words) if words else text
