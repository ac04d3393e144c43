"""The files of a tokenizer, its processor and of generation, carried over as they are.

What transformers 5 would write for a tokenizer that it has read, transformers 4 does not load.
"""

import json
from collections.abc import Sequence

from swjax.atomic import write_json
from swjax.storage import AnyPath, copy_file, make_folder, remove_folder, resolved
from swjax.streaming.tokens import Tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "generation_config.json",
)

TEMPLATES = "additional_chat_templates"
"""The folder of chat templates with names of their own."""


def copy_tokenizer(source: AnyPath, folder: AnyPath) -> None:
    """Copy the files of a tokenizer that are there, and remove those that are not, into a folder made if need be."""
    if resolved(source) == resolved(folder):
        return
    make_folder(folder)
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            copy_file(source / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    remove_folder(folder / TEMPLATES)
    if (source / TEMPLATES).is_dir():
        make_folder(folder / TEMPLATES)
        for file in (source / TEMPLATES).glob("*.jinja"):
            copy_file(file, folder / TEMPLATES / file.name)


def write_added_tokens(folder: AnyPath, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Write tokens that have been added to a tokenizer in memory into its files, as transformers 4 and 5 read them.

    Args:
        folder: the tokenizer's files.
        tokenizer: the tokenizer, which has the tokens.
        texts: of the tokens; those that the files have stay as they are.
    """
    ids = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    file = folder / "tokenizer.json"
    if file.exists():
        content = json.loads(file.read_text(encoding="utf-8"))
        known = {token["content"] for token in content["added_tokens"]}
        content["added_tokens"] += [{"id": ids[text], "content": text, **plain} for text in texts if text not in known]
        write_json(file, content)
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if "added_tokens_decoder" in content or not (folder / "tokenizer.json").exists():
        decoder = content.setdefault("added_tokens_decoder", {})
        known = {token["content"] for token in decoder.values()}
        decoder |= {str(ids[text]): {"content": text, **plain} for text in texts if text not in known}
        write_json(file, content)
    file = folder / "added_tokens.json"
    if file.exists():
        write_json(file, {**{text: ids[text] for text in texts}, **json.loads(file.read_text(encoding="utf-8"))})
