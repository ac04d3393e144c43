"""`swjax export`: write a checkpoint that transformers loads."""

import argparse
from pathlib import Path

from swjax.commands.say import add_checkpoint_arguments, console, refusing

NAME = "export"
HELP = "write a trained model as a Hugging Face folder"

DESCRIPTION = """\
Write a trained model as a Hugging Face folder: model.safetensors with the names that the hub uses, config.json,
generation_config.json, preprocessor_config.json and the tokenizer. PyTorch users load it with

  transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained("DIR")

and `swjax stream --checkpoint DIR` streams with it.
"""
EXAMPLE = "example: swjax export --checkpoint runs/moving_shapes --output exports/moving_shapes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add_checkpoint_arguments(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="dtype of the weights (default: the checkpoint's)"
    )


@refusing
def run(args: argparse.Namespace) -> int:
    """Export, and say what was written."""
    from swjax.conversion.streaming_model import export_streaming_model, load_streaming_model

    source = load_streaming_model(args.checkpoint, step=args.step, dtype=args.dtype)
    export_streaming_model(source, args.output)
    out = console()
    for file in sorted(args.output.iterdir()):
        out.print(f"{file.stat().st_size:>12,} bytes  {file}", soft_wrap=True)
    return 0
