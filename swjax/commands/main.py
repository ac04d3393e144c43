"""The console script: finds the verb and hands over."""

import argparse
import os
import sys
from collections.abc import Sequence

from swjax import __version__
from swjax.commands import (
    data,
    evaluate,
    export,
    import_,
    layout,
    plan,
    prepare,
    quickstart,
    report,
    serve,
    stream,
    sweep,
    train,
)

VERBS = (quickstart, prepare, data, train, evaluate, sweep, report, stream, serve, export, import_, layout, plan)

DESCRIPTION = """\
Train and run video-language models that speak while they watch.

New here? `swjax quickstart` makes a small data set, trains a small model on it, lets it describe a video while it
watches, and exports it, in minutes and without downloads.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0, 1 (it failed), 2 (it was asked for wrongly) or 130 (interrupted)."""
    # transformers would advise at every start to install torch, which swjax does not need.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    parser = argparse.ArgumentParser(
        prog="swjax", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"swjax {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        chosen = verbs.add_parser(
            verb.NAME,
            help=verb.HELP,
            description=verb.DESCRIPTION,
            epilog=verb.EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        # Only the verb that is asked for declares its arguments: some import much for it.
        arguments = sys.argv[1:] if argv is None else argv
        if verb.NAME in arguments[:1]:
            verb.add_arguments(chosen)
            chosen.set_defaults(run=verb.run)
    args, extra = parser.parse_known_args(argv)
    return args.run(args, extra)


if __name__ == "__main__":
    sys.exit(main())
