"""`swjax import`: fetch released weights and check them."""

import argparse

from swjax.commands.say import any_path, console, refusing

NAME = "import"
HELP = "fetch released weights from the Hub and check them"

DESCRIPTION = """\
Fetch the weights, configuration, tokenizer and processor of a Qwen2.5-VL checkpoint from the Hugging Face Hub, or copy
them from a folder, and check that every tensor is there with the shape and dtype that the configuration makes it. No
weight is read into memory. The tokenizer's chat template is tried once, on a chat about a video. What comes out is an
ordinary Hugging Face folder: training starts from it as it is, each process reading only what its own devices hold,
from a disk that all of them share.

Cut off, the same command goes on. Without a network, download the files elsewhere, copy the folder here, and give it as
CHECKPOINT; without --out it is checked where it lies.
"""
EXAMPLE = """\
examples:
  swjax import Qwen/Qwen2.5-VL-7B-Instruct --out weights/7b
  swjax train --config configs/pe_video_7b.py --config.init_from=weights/7b
  swjax import weights/7b
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="Hub id or folder")
    parser.add_argument("--out", type=any_path, metavar="DIR", help="folder to make (default: check where it lies)")


@refusing
def run(args: argparse.Namespace) -> int:
    """Import, and say what was found."""
    from swjax.data.tokenizer import load_tokenizer
    from swjax.hub.importing import import_checkpoint

    checked = import_checkpoint(args.checkpoint, args.out)
    text, vision = checked.config.text, checked.config.vision
    out = console()
    out.print(
        f"{checked.folder}: {checked.parameters:,} parameters in {', '.join(checked.dtypes)}, all there\n"
        f"  decoder: {text.num_layers} layers of {text.hidden_size}, {text.vocab_size:,} tokens, "
        f"{'tied' if text.tie_word_embeddings else 'untied'} embeddings\n"
        f"  vision tower: {vision.depth} blocks of {vision.hidden_size}",
        soft_wrap=True,
    )
    if checked.lacking:
        mend = "; name a tokenizer with --config.tokenizer" if "tokenizer.json" in checked.lacking else ""
        out.print(f"  not there: {', '.join(checked.lacking)}{mend}", soft_wrap=True)
    if "tokenizer.json" not in checked.lacking:
        tokenizer = load_tokenizer(checked.folder)
        out.print(f"  tokenizer: {len(tokenizer):,} tokens; its chat template was tried on a video", soft_wrap=True)
    out.print(f"train from it with --config.init_from={checked.folder}", soft_wrap=True)
    return 0
