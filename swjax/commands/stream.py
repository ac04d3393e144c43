"""`swjax stream`: describe a video while watching it, in the terminal."""

import argparse
import errno
import functools
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from swjax.commands.memory_arguments import add_memory_arguments, read_drop, read_memory
from swjax.commands.mesh_arguments import add_mesh_argument, load_on_mesh, read_mesh
from swjax.commands.say import UsageError, add_checkpoint_arguments, any_path, console, refusing
from swjax.commands.speaking_arguments import add_speaking_arguments, read_speaking
from swjax.streaming.spec import StreamSpec
from swjax.streaming.tokens import Tokenizer

if TYPE_CHECKING:  # at run time they are imported where they are used, so that --help is quick
    from swjax.inference import Frame, StreamEvent, StreamSession, StreamSettings
    from swjax.streaming import Geometry

NAME = "stream"
HELP = "describe a video while watching it"

DESCRIPTION = """\
Describe a video while watching it. Frames are taken in at the video's own pace; each is encoded once and its keys and
values are kept. After each frame the model says the next words (wait-k), after the last one the rest. A camera or a
stream is watched as it comes, and has no end of its own: --memory window keeps it in bounded memory.
"""
EXAMPLE = "example: swjax stream --checkpoint runs/moving_shapes --video data/moving_shapes/test/videos/test-00000.mp4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add_checkpoint_arguments(parser)
    parser.add_argument("--adapter", metavar="DIR", help="LoRA adapter in PEFT's form to merge into it")
    parser.add_argument(
        "--video",
        required=True,
        metavar="FILE",
        help="the video: a local file, or what is watched as it comes: rtsp://..., http://..., /dev/video0, "
        "- (standard input)",
    )
    parser.add_argument("--question", help="what to ask (default: to describe the scene and the activity)")
    parser.add_argument("--variant", help="position design (default: what the model was trained with)")
    parser.add_argument("--wait-k", type=int, help="answer tokens after each frame (default: as trained)")
    parser.add_argument(
        "--schedule",
        metavar="COUNTS",
        help="answer tokens after each frame one by one, in the place of --wait-k: 3,0,5,... or a file of such counts; "
        "what is left follows the last frame, whose count is not used",
    )
    parser.add_argument("--gap", type=int, help="first position id of the answer in gipe (default: as trained)")
    parser.add_argument(
        "--max-tail",
        type=int,
        default=StreamSpec.max_tail,
        help="limit on tokens after the last frame (default: %(default)s)",
    )
    parser.add_argument(
        "--stop-token",
        action="append",
        default=[],
        metavar="TEXT",
        help="a token that ends the answer, beside <|im_end|>; may be given several times",
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default: 0)")
    parser.add_argument("--top-k", type=int, default=0, help="draw from the k likeliest tokens (default: from all)")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the likeliest of this probability together")
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        help="lower the scores of what the answer has already; the paper evaluates with 1.15 (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument(
        "--as-fast-as-possible", action="store_true", help="do not wait for the video's clock between frames"
    )
    parser.add_argument(
        "--picture",
        type=any_path,
        metavar="PNG",
        help="write a picture: the frames and, below each, the words said then",
    )
    add_speaking_arguments(parser)
    add_memory_arguments(parser)
    add_mesh_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object an event instead of text")


@refusing
def run(args: argparse.Namespace) -> int:
    """Stream one video."""
    from swjax.commands.picture import draw_stream
    from swjax.data.chat import EVALUATION_QUESTION
    from swjax.data.live import is_live
    from swjax.data.tokenizer import load_tokenizer
    from swjax.inference import StreamSession, Weights, read_frames, read_live_frames
    from swjax.inference.sampler import NotFiniteError
    from swjax.runs.streaming_model import load_with_adapter

    if args.picture and (args.picture.is_dir() or args.picture.suffix.lower() != ".png"):
        raise UsageError(f"--picture {args.picture} must name a PNG file, as stream.png")

    mesh = read_mesh(args)
    if args.adapter and mesh:
        raise UsageError("--adapter is merged on one device; export the merged model, and stream that with --mesh")
    if args.adapter:
        source = load_with_adapter(args.checkpoint, args.adapter, step=args.step)
    else:
        source = load_on_mesh(args.checkpoint, mesh, step=args.step)
    tokenizer = load_tokenizer(source.tokenizer, source.model.config.chat)
    settings = _settings(args, source.record, tokenizer, source.model.config.geometry)
    record = source.record
    live = is_live(args.video)
    read = functools.partial(
        read_live_frames if live else read_frames,
        args.video,
        fps=record.fps,
        min_pixels=record.min_pixels,
        max_pixels=record.max_pixels,
        geometry=source.model.config.geometry,
    )
    weights = Weights(source.model, mesh, consume=True)
    question = args.question or EVALUATION_QUESTION

    # The first frame once for nothing, so that no compiling stands between the first frame and the first word.
    arriving = read()
    try:
        rehearsal = StreamSession(weights, tokenizer, question=question, settings=settings)
        first = next(arriving)
        rehearsal.see(first, last=True)
        list(rehearsal.speak(2))
    except (ValueError, NotFiniteError) as error:
        raise UsageError(str(error)) from error

    session = StreamSession(weights, tokenizer, question=question, settings=settings)
    frames: list[Frame] = []
    words: list[str] = []
    # A live source is opened once, and comes at its own pace.
    arriving = itertools.chain([first], arriving) if live else read()
    watched = arriving if settings.counts is None else _within(arriving, settings.counts)
    watched = _keep(watched, frames) if args.picture else watched
    events = _collect(session.run(watched, speed=None if live or args.as_fast_as_possible else 1.0), words)
    try:
        if args.json:
            for event in events:
                print(json.dumps({"event": type(event).__name__, **asdict(event)}), flush=True)
        else:
            _show(console(), args, settings, session, events)
    except NotFiniteError as error:
        raise UsageError(str(error)) from error
    if args.picture:
        try:
            draw_stream(frames[: len(words)], words, args.picture)  # one frame is read ahead
        except OSError as error:
            raise UsageError(f"--picture {args.picture} cannot be written: {error.strerror}") from error
    return 0


def _keep(frames: "Iterable[Frame]", kept: "list[Frame]") -> "Iterator[Frame]":
    """Pass frames on and keep them for the picture."""
    for frame in frames:
        kept.append(frame)
        yield frame


def _within(frames: "Iterable[Frame]", counts: tuple[int, ...]) -> "Iterator[Frame]":
    """Pass on the frames of a schedule that has a count for each but the last."""
    for index, frame in enumerate(frames):
        if index > len(counts):
            raise UsageError(
                f"--schedule has counts for {len(counts)} frames, and the video has more than {index}; "
                "give a count for each frame"
            )
        yield frame


def _collect(events: "Iterator[StreamEvent]", words: list[str]) -> "Iterator[StreamEvent]":
    """Pass events on and gather the words spoken after each frame."""
    from swjax.inference import FrameSeen, TokenSpoken

    for event in events:
        if isinstance(event, FrameSeen):
            words.append("")
        elif isinstance(event, TokenSpoken):
            words[event.after_frame] += event.text
        yield event


def _schedule(text: str) -> tuple[int, ...]:
    """The counts of a schedule, given as they are or as a file of them."""
    file = Path(text)
    counts: list[int] = []
    mend = "write 3,0,5,... or name a file of such counts"
    try:
        is_file = file.is_file()
        lines = (file.read_text() if is_file else text).splitlines()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise UsageError(f"--schedule {text}: {error.strerror}; {mend}") from error
        is_file, lines = False, text.splitlines()  # counts of a long video
    except UnicodeDecodeError as error:
        raise UsageError(f"--schedule {text}: it is no text; {mend}") from error
    for number, line in enumerate(lines, start=1):
        for word in line.replace(",", " ").split():
            if not word.isdecimal() or len(word) > 10:
                where = f"{file}:{number}" if is_file else f"--schedule {text}"
                raise UsageError(f"{where}: {word!r} is no count of tokens; {mend}")
            counts.append(int(word))
    if not counts:
        raise UsageError(f"--schedule {text}: there are no counts in it; {mend}")
    return tuple(counts)


def _stop_token(text: str, tokenizer: Tokenizer) -> int:
    from swjax.data.text import check_text

    check_text(text, "--stop-token")
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        parts = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(ids)))
        raise UsageError(f"--stop-token {text!r} is {len(ids)} tokens ({parts}); name one that the tokenizer has")
    return int(ids[0])


def _settings(
    args: argparse.Namespace, record: "StreamSpec", tokenizer: Tokenizer, geometry: "Geometry"
) -> "StreamSettings":
    from swjax.inference import Sampling, StreamSettings
    from swjax.streaming import Variant

    given = [name for name in ("schedule", "wait_k", "speak") if getattr(args, name) is not None]
    if given[1:]:
        named = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{named} both say how many tokens follow a frame; give one of them")
    speaking = {} if given and given != ["speak"] else read_speaking(args, record, tokenizer)
    try:
        return StreamSettings(
            variant=Variant(args.variant or record.variant),
            wait_k=record.wait_k if args.wait_k is None else args.wait_k,
            counts=None if args.schedule is None else _schedule(args.schedule),
            gap=record.gap if args.gap is None else args.gap,
            second_per_grid_t=geometry.frame_seconds(record.fps),
            max_tail=args.max_tail,
            memory=read_memory(args, record),
            **speaking,
            drop=read_drop(args, record),
            stop_tokens=tuple(_stop_token(text, tokenizer) for text in args.stop_token),
            sampling=Sampling(
                temperature=args.temperature,
                top_k=args.top_k,
                top_p=args.top_p,
                repetition_penalty=args.repetition_penalty,
                seed=args.seed,
            ),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _show(
    out: Console,
    args: argparse.Namespace,
    settings: "StreamSettings",
    session: "StreamSession",
    events: "Iterator[StreamEvent]",
) -> None:
    """A line for each frame: the video's clock, and behind it the words as they come."""
    from swjax.inference import FrameSeen, StreamEnded, TokenSpoken

    pace = f"{settings.wait_k} tokens a frame" if settings.counts is None else "tokens by a schedule"
    pace = pace if settings.speaking_rule is None else f"speaks by {settings.speaking_rule}"
    out.print(f"{args.video}  [dim]{settings.variant}, {pace}[/]", soft_wrap=True)
    first_word_s = None
    for event in events:
        match event:
            case FrameSeen():
                clock = f"{int(event.video_s) // 60}:{event.video_s % 60:04.1f}"
                out.print(f"\n[cyan]{clock:>8}[/] [dim]frame {event.index:>3}[/]  ", end="")
            case TokenSpoken():
                first_word_s = event.wall_s if first_word_s is None else first_word_s
                out.print(event.text, end="", markup=False, soft_wrap=True)
                out.file.flush()
            case StreamEnded():
                ending = "" if event.reason == "end_token" else f", cut off at {settings.max_tail} tokens of tail"
                first = "no word" if first_word_s is None else f"first word after {first_word_s:.2f} s"
                out.print(
                    f"\n\n[dim]{session.frames_encoded} frames encoded once each, {session.tokens_computed} tokens "
                    f"computed once each, {len(session.answer)} spoken{ending}; {first}, "
                    f"{event.wall_s:.2f} s in all[/]",
                    soft_wrap=True,
                )
