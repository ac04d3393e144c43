"""The tokenizer: the small one that is shipped with Moving Shapes, or one in a folder."""

from pathlib import Path
from typing import Any

SHIPPED_TOKENIZER = Path(__file__).parent / "moving_shapes" / "tokenizer"


class TokenizerError(ValueError):
    """A tokenizer cannot be loaded, or does not speak Qwen2.5-VL's chat format."""


NEEDED_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
"""Those that give a chat its structure."""


def load_tokenizer(path: str | Path | None = None) -> Any:
    """Load a tokenizer with `transformers.AutoTokenizer`, from disk only.

    Args:
        path: a folder with tokenizer.json, tokenizer_config.json and a chat template, such as a checkpoint's; None for
            the small one that is shipped.

    Returns:
        A transformers tokenizer with Qwen2.5-VL's special tokens and a chat template.

    Raises:
        TokenizerError: if the folder or its tokenizer.json is missing or cannot be read, or if a special token or the
            chat template is missing; the message says which, and where.
    """
    folder = SHIPPED_TOKENIZER if path is None else Path(path)
    if not (folder / "tokenizer.json").is_file():
        what = "has no tokenizer.json" if folder.is_dir() else "is not a folder"
        raise TokenizerError(f"{folder} {what}; give a folder with a tokenizer, or none for the shipped one")
    from transformers import AutoTokenizer  # here, because it takes seconds to import

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise many kinds, bare Exception among them
        raise TokenizerError(f"the tokenizer in {folder} cannot be read: {error}") from error
    added = tokenizer.get_added_vocab()
    missing = [token for token in NEEDED_TOKENS if token not in added]
    if missing:
        raise TokenizerError(f"the tokenizer in {folder} lacks Qwen2.5-VL's special tokens {', '.join(missing)}")
    if not tokenizer.chat_template:
        raise TokenizerError(f"the tokenizer in {folder} has no chat template; put a chat_template.jinja beside it")
    return tokenizer
