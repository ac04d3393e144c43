"""Trains the tokenizer of Moving Shapes, which is shipped in the folder `tokenizer` beside this file.

    python -m swjax.data.moving_shapes.train_tokenizer [FOLDER]

A byte-level BPE of the same make as Qwen2.5-VL's (normalisation, splitting into words, special tokens and their order),
small enough for a model of a million parameters: 256 bytes and the merges that turn every word of the captions, the
chat and the questions into one token. Any other text still has its tokens, if more of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from swjax.data.chat import TRAINING_QUESTIONS
from swjax.data.moving_shapes.grammar import vocabulary
from swjax.streaming import DEFAULT_CHAT

FOLDER = Path(__file__).with_name("tokenizer")

# Qwen2.5-VL's added tokens, in its order; those of the second line are no special tokens there either.
SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
ADDED_TOKENS = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)
ROLES = ("system", "user", "assistant")
# Contractions; words with one character before them; single digits; marks; line ends; spaces.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train() -> Tokenizer:
    """The tokenizer, trained anew; always the same."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    words = [*vocabulary(), *ROLES, DEFAULT_CHAT.system_prompt, *TRAINING_QUESTIONS]
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,  # more than there are merges: training ends when every word is one token
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in ADDED_TOKENS])
    return tokenizer


def write(folder: Path) -> int:
    """Train and write `tokenizer.json` and `tokenizer_config.json` into a folder; returns the number of ids."""
    tokenizer = train()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return tokenizer.get_vocab_size()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the tokenizer of Moving Shapes.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="where to write it (default: the package)")
    folder = parser.parse_args().folder
    print(f"{write(folder)} tokens written to {folder}")


if __name__ == "__main__":
    main()
