"""The console script: finds the verb and hands over."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

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
from swjax.commands.say import printing_notices, refuse
from swjax.storage import StorageError, as_path, describe_failure, is_remote, sync_logs

VERBS = (quickstart, prepare, data, train, evaluate, sweep, report, stream, serve, export, import_, layout, plan)

# Arguments that may hold a URL, and those that hold words in which one may stand.
_URLS = ("judge_url", "allow_origin")
_WORDS = ("question", "text", "prefix", "token", "beam_option", "judge_options")

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
    refused = _refused_paths(args, extra)
    if refused:
        return refuse(refused)
    try:
        with printing_notices():
            status = args.run(args, extra)
            sync_logs()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has seen enough (`swjax stream ... | head`). Python would flush once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        said = str(error) if isinstance(error, StorageError) else describe_failure(error)
        if not said:
            raise
        return refuse(said)
    return status


def _refused_paths(args: argparse.Namespace, extra: Sequence[str]) -> str:
    """What to say of a path that cannot be used (`as_path`), before any verb reads or writes; '' if all can."""
    given = {name: value if isinstance(value, list) else [value] for name, value in vars(args).items()}
    values = [value for name, listed in given.items() if name not in _URLS and name not in _WORDS for value in listed]
    values += [word.partition("=")[2] if word.startswith("-") else word for word in extra]
    try:
        for value in values:
            paths = [as_path(part) for part in str(value).split(",")] if isinstance(value, str | Path) else []
            # Verbs that take a bucket make their paths with `as_path`.
            if isinstance(value, Path) and any(map(is_remote, paths)):
                alone = "this argument takes files and folders on disk alone; copy it, or mount the bucket"
                return f"{paths[0]} is in a bucket, and {alone}"
    except StorageError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    sys.exit(main())
