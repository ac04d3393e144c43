"""`swjax serve`: many users' videos at once, over WebSockets, with a web page."""

import argparse
import asyncio
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from swjax.commands.memory_arguments import add_memory_arguments, read_drop, read_memory
from swjax.commands.mesh_arguments import add_mesh_argument, load_on_mesh, read_mesh
from swjax.commands.say import UsageError, add_checkpoint_arguments, console, refuse, refusing
from swjax.commands.speaking_arguments import add_speaking_arguments, read_speaking
from swjax.streaming.spec import StreamSpec

if TYPE_CHECKING:  # at run time they are imported where they are used, so that --help is quick
    from swjax.inference import Mode
    from swjax.serving import EngineSize, Limits
    from swjax.serving.logs import LineHandler

NAME = "serve"
HELP = "let many users stream their videos, in a web page or over WebSockets"

TOKEN_VARIABLE = "SWJAX_TOKEN"
LARGEST = 1e6
"""Of seconds and MiB; a week and a terabyte are beyond what is meant."""
LOG_S = 0.5
"""Seconds for which the last lines of the log are waited for."""

DESCRIPTION = """\
Serve a model that speaks while it watches: a web page that shows a file or the webcam with the words under it, and a
WebSocket that takes pictures and gives words (docs/serving.md). One engine advances all streams together; clients that
come when all rows are taken wait for one.

The server is for this machine alone, unless --host says otherwise; then clients need a token, which is printed unless
--token gives one. Put a reverse proxy with TLS before a server that others reach, and name its address with
--allow-origin. SIGTERM or Ctrl-C ends it: clients are told, and their streams end.
"""
EXAMPLE = "example: swjax serve --checkpoint runs/moving_shapes, then open http://127.0.0.1:8765"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    from swjax.inference import Mode

    add_checkpoint_arguments(parser)
    listening = parser.add_argument_group("who can connect")
    listening.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    listening.add_argument(
        "--port", type=_whole(0, 65_535), default=8765, help="0 for any that is free (default: %(default)s)"
    )
    listening.add_argument(
        "--token",
        action="append",
        help=f"what clients must show; may be repeated, one for each group of users, which then have limits of their "
        f"own (default: those in the environment variable {TOKEN_VARIABLE}, with spaces between them, which other "
        "users of the machine do not see; made and printed where one is needed and none given)",
    )
    listening.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="https://name of pages that may connect beside the server's own; may be repeated",
    )
    listening.add_argument(
        "--proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="address of a reverse proxy, whose X-Forwarded-For is believed; may be repeated",
    )
    engine = parser.add_argument_group("the engine")
    engine.add_argument("--rows", type=_whole(1), default=8, help="streams at a time (default: %(default)s)")
    engine.add_argument(
        "--mode",
        action="append",
        choices=[str(mode) for mode in Mode],
        help="what clients may choose; may be repeated (default: all but recompute, which costs most)",
    )
    engine.add_argument(
        "--max-pixels", type=_whole(1), help="area to which pictures are resized at most (default: as trained)"
    )
    engine.add_argument(
        "--slots",
        type=_whole(2),
        help="of each row's cache (default: as many as a video of --max-seconds needs, or as --memory keeps)",
    )
    engine.add_argument(
        "--picture-size",
        action="append",
        type=_size,
        metavar="WxH",
        help="compile for pictures of exactly this size; may be repeated (default: pictures of 16:9, 4:3 and 1:1). "
        "Others are padded to one of a few sizes",
    )
    add_speaking_arguments(parser)
    add_memory_arguments(parser)
    add_mesh_argument(parser)
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-seconds", type=_number, default=120.0, help="length of a video (default: %(default)g)")
    limits.add_argument(
        "--max-tail",
        type=_whole(1),
        default=StreamSpec.max_tail,
        help="tokens after the last frame (default: %(default)s)",
    )
    limits.add_argument("--max-clients", type=_whole(1), default=128, help="open sockets (default: %(default)s)")
    limits.add_argument(
        "--max-clients-each", type=_whole(1), help="of one address or token (default: half of --max-clients)"
    )
    limits.add_argument(
        "--max-rows-each",
        type=_whole(1),
        help="streams at a time of one address or token (default: half of --rows, or all on this machine alone)",
    )
    limits.add_argument(
        "--max-waiting", type=_whole(0), default=64, help="clients that wait for a row (default: %(default)s)"
    )
    limits.add_argument(
        "--max-picture-mb", type=_number, default=2.0, help="a picture's file, in MiB (default: %(default)g)"
    )
    limits.add_argument(
        "--idle-seconds",
        type=_number,
        default=30.0,
        help="without a picture or a word, after which a stream ends (default: %(default)g)",
    )


@refusing
def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    try:
        import aiohttp  # noqa: F401
    except ImportError as error:
        raise UsageError("swjax serve needs the extra `serve`: pip install 'swjax[serve]'") from error
    from swjax.data.tokenizer import load_tokenizer
    from swjax.inference import Mode, Weights
    from swjax.serving import Access, EngineSize, Offer, ServingError, build_engine, make_token, serve
    from swjax.serving.access import is_loopback
    from swjax.serving.logs import LineHandler, log_to
    from swjax.serving.offer import USUAL_MODES

    out = console()
    try:
        given = tuple(args.token or os.environ.get(TOKEN_VARIABLE, "").split())
        made = () if given or is_loopback(args.host) else (make_token(),)
        access = Access(args.host, given or made, tuple(args.allow_origin), tuple(args.proxy))
        limits = _limits(args, own_machine=not (access.tokens or access.proxies))
    except ValueError as error:
        raise UsageError(str(error)) from error
    mesh = read_mesh(args)
    source = load_on_mesh(args.checkpoint, mesh, step=args.step)
    tokenizer = load_tokenizer(source.tokenizer, source.model.config.chat)
    memory, drop = read_memory(args, source.record), read_drop(args, source.record)
    modes = tuple(Mode(mode) for mode in args.mode) if args.mode else USUAL_MODES
    try:
        record = _record(args, source.record)
        geometry = source.model.config.geometry
        voice = read_speaking(args, record, tokenizer)
        name = Path(args.checkpoint).name
        offer = Offer(name, record, modes, limits, geometry=geometry, memory=memory, drop=drop, voice=voice)
        pictures = {"pictures": args.picture_size} if args.picture_size else {}
        size = EngineSize.of(
            record, limits, rows=args.rows, slots=args.slots, geometry=geometry, memory=memory, **pictures
        )
        _describe(size, modes)
        weights = Weights(source.model, mesh, consume=True)
        engine = build_engine(weights, size, tokenizer, memory, drop)
    except (ValueError, OverflowError) as error:
        raise UsageError(str(error)) from error
    log_to(log := LineHandler())  # after the libraries have configured theirs

    def listening(port: int) -> None:
        host = f"[{args.host}]" if ":" in args.host else args.host
        shown = f"#token={made[0]}" if made else ""
        out.print(f"listening on http://{host}:{port}/{shown}", soft_wrap=True, markup=False)
        out.file.flush()

    try:
        asyncio.run(serve(engine, size, tokenizer, offer, access, port=args.port, on_listening=listening))
    except ServingError as error:
        # In a thread, as nobody may read the standard error.
        refusal = threading.Thread(target=refuse, args=(error,), daemon=True)
        refusal.start()
        refusal.join(LOG_S)
        _leave(1, log)
    _leave(0, log)


def _leave(status: int, log: "LineHandler") -> NoReturn:
    """End the process without the interpreter's own end: it frees what was compiled, which takes seconds, and would
    wait for an engine that hangs."""
    log.drain(LOG_S)
    sys.stdout.flush()
    os._exit(status)


def _limits(args: argparse.Namespace, *, own_machine: bool) -> "Limits":
    from swjax.serving import Limits

    usual = Limits()
    return Limits(
        max_clients=args.max_clients,
        max_clients_each=args.max_clients_each or -(-args.max_clients // 2),
        max_rows_each=args.max_rows_each or (args.rows if own_machine else -(-args.rows // 2)),
        max_waiting=args.max_waiting,
        max_message_bytes=int(args.max_picture_mb * 2**20),
        max_tail=args.max_tail,
        max_video_s=args.max_seconds,
        # Time enough to show a video at a fifth of its speed.
        max_wall_s=max(usual.max_wall_s, 5 * args.max_seconds),
        idle_s=args.idle_seconds,
    )


def _record(args: argparse.Namespace, record: "StreamSpec") -> "StreamSpec":
    """What the model was trained to do, with the largest area that is wanted here."""
    if args.max_pixels is None:
        return record
    return replace(record, max_pixels=args.max_pixels, min_pixels=min(record.min_pixels, args.max_pixels))


def _describe(size: "EngineSize", modes: "tuple[Mode, ...]") -> None:
    console().print(
        f"compiling for {size.rows} streams at a time, {size.slots} slots each, frames of up to {size.frame_units} "
        f"tokens, modes {', '.join(modes)} ...",
        soft_wrap=True,
        markup=False,
    )


def _size(text: str) -> tuple[int, int]:
    """Read WxH."""
    width, _, height = text.partition("x")
    try:
        return _whole(1, 65_535)(width), _whole(1, 65_535)(height)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no size; write it as 1280x720") from error


def _whole(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """Reads whole numbers of a range."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 10 and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from {least} to {most}")
        return int(text)

    return read


def _number(text: str) -> float:
    """Read a number above zero that is not endless."""
    try:
        number = float(text) if text.isascii() else 0.0
    except ValueError:
        number = 0.0
    if not 0 < number <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number above 0, up to {LARGEST:g}")
    return number
