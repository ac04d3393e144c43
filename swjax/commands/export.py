"""`swjax export`: write a checkpoint that transformers loads."""

import argparse
import re

from swjax.commands.say import UsageError, add_checkpoint_arguments, any_path, console, refusing
from swjax.storage import is_remote, list_files

NAME = "export"
HELP = "write a trained model as a Hugging Face folder"

DESCRIPTION = """\
Write a trained model as a Hugging Face folder: safetensors with the names that the hub uses, config.json,
generation_config.json, preprocessor_config.json, the tokenizer, and two files for PyTorch that need neither swjax nor
JAX: finetuning.py, and streaming.py, with which the model speaks while it watches:

  python DIR/streaming.py VIDEO

`swjax stream --checkpoint DIR` streams with the folder, too. Weights are read and written part by part: memory holds
about one file of the export (--max-shard-size), never the model. Cut off, it leaves nothing that loads.

Of a LoRA run the weights are written with the adapter merged; --format lora writes the adapter alone, in PEFT's form
(adapter_model.safetensors and adapter_config.json), to be put on the model that the run started from. streaming.json
records beside it what it was trained to do.
"""
EXAMPLE = """\
examples:
  swjax export --checkpoint runs/moving_shapes --output exports/moving_shapes
  swjax export --checkpoint runs/pe_video_7b --output exports/pe_video_7b --dtype bfloat16 --verify
  swjax export --checkpoint runs/lora --output exports/lora --format lora --verify
  swjax export --checkpoint runs/lora --output exports/lora --push owner/name --dry-run
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add_checkpoint_arguments(parser)
    parser.add_argument("--output", required=True, type=any_path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--format",
        choices=["merged", "lora"],
        default="merged",
        help="merged: all weights, with those of an adapter added; lora: the adapter of a LoRA run alone, as PEFT "
        "writes it (default: merged)",
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="dtype of the weights (default: the checkpoint's)"
    )
    parser.add_argument(
        "--max-shard-size", type=_size, default="5GB", metavar="SIZE", help="largest file, such as 500MB (default: 5GB)"
    )
    parser.add_argument(
        "--push",
        type=_repository,
        metavar="OWNER/NAME",
        help="then upload the folder to this repository of the Hugging Face Hub, made private if it is not there",
    )
    parser.add_argument("--dry-run", action="store_true", help="with --push: show what would be uploaded, and stop")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="then compare the exported model's logits with transformers', and the words of its streaming.py with "
        "those spoken here, in float32; an adapter's on the model that the run started from (needs torch, and memory "
        "for 4 bytes a parameter)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        help="largest difference that --verify allows, relative to the largest logit (default: 0.001)",
    )


@refusing
def run(args: argparse.Namespace) -> int:
    """Export, say what was written, and compare it with transformers if asked to."""
    from swjax.hub.push import push_folder
    from swjax.hub.verify import require_torch
    from swjax.runs.export import about_run, export_adapter, export_streaming_model
    from swjax.runs.streaming_model import open_streaming_model

    if args.dry_run and not args.push:
        raise UsageError("--dry-run shows what --push would upload; give it with --push OWNER/NAME")
    if is_remote(args.output) and (args.verify or args.push):
        raise UsageError(f"--verify and --push need a folder on disk, and --output is {args.output}")
    if args.verify:
        require_torch()
    about = about_run(args.checkpoint)
    if args.format == "lora":
        if args.verify and about:
            _check_base(args.checkpoint, about["base"])
        export_adapter(args.checkpoint, args.output, step=args.step, dtype=args.dtype)
    else:
        source = open_streaming_model(args.checkpoint, step=args.step)
        export_streaming_model(
            source,
            args.output,
            dtype=args.dtype,
            max_shard_size=args.max_shard_size,
            about=about,
        )
    out = console()
    for name, size in sorted(list_files(args.output).items()):
        out.print(f"{size:>12,} bytes  {args.output / name}", soft_wrap=True)
    if args.verify and not _agrees(args):
        return 1
    if args.push:
        size = sum(list_files(args.output).values())
        if args.dry_run:
            out.print(f"these {size:,} bytes would be uploaded to {args.push}; nothing was", soft_wrap=True)
        else:
            out.print(f"uploaded {size:,} bytes: {push_folder(args.output, args.push)}", soft_wrap=True)
    return 0


def _agrees(args: argparse.Namespace) -> bool:
    """Whether the exported folder's logits are those of transformers, and its words ours; it shows both."""
    from swjax.commands.export_words import compare_words, load_exported
    from swjax.hub.reader import find_checkpoint, read_config
    from swjax.hub.verify import compare_logits, compare_models
    from swjax.runs.export import about_run
    from swjax.runs.streaming_model import StreamingModel, load_adapted_base, load_streaming_model

    out, is_adapter = console(), args.format == "lora"
    base = find_checkpoint(about_run(args.checkpoint)["base"]) if is_adapter else args.output

    def ours() -> StreamingModel:
        if is_adapter:
            return load_adapted_base(args.checkpoint, base, step=args.step, adapter_dtype=args.dtype)
        return load_streaming_model(args.output, dtype="float32")

    if is_adapter:
        differences = compare_models(read_config(base), lambda: load_exported(args.output)[0], lambda: ours().model)
    else:
        differences = compare_logits(args.output)
    for name, difference in differences.items():
        out.print(f"{difference:12.2e}  largest difference to transformers, relative to the largest logit: {name}")
    if max(differences.values()) > args.tolerance:
        out.print(f"[bold red]the logits differ by more than {args.tolerance}[/]: do not use {args.output}")
        return False
    if not any((args.output / name).exists() for name in ("tokenizer.json", "vocab.json")):
        out.print("the checkpoint has no tokenizer, so there are no words to compare", soft_wrap=True)
        return True
    theirs, spoken = compare_words(args.output, ours)
    same = next((at for at, pair in enumerate(zip(theirs, spoken, strict=False)) if pair[0] != pair[1]), len(spoken))
    agreed = f"{same:>12} of {len(spoken)} words that streaming.py speaks in PyTorch are those spoken here"
    out.print(agreed, soft_wrap=True)
    if theirs != spoken:
        out.print(f"[bold red]the words differ from number {same + 1} on[/]: do not use {args.output}")
    return theirs == spoken


def _check_base(run_dir: str, base: str | None) -> None:
    """Refuses, before anything is written, a run whose adapter --verify has no model for."""
    from swjax.hub.reader import find_checkpoint

    if base is None:
        raise UsageError(f"{run_dir} started from no checkpoint, so --verify has no model to put its adapter on")
    find_checkpoint(base)


def _repository(word: str) -> str:
    from swjax.hub.push import check_repository

    try:
        return check_repository(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _size(word: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", word):
        raise argparse.ArgumentTypeError(f"{word!r} is no size; give a number and KB, MB, GB or TB, such as 5GB")
    return word
