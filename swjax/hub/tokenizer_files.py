"""The files of a tokenizer, its processor and of generation, carried over as they are.

What transformers 5 would write for a tokenizer that it has read, transformers 4 does not load.
"""

import shutil
from pathlib import Path

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


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the files of a tokenizer that are there, and remove those that are not, into a folder made if need be."""
    if source.resolve() == folder.resolve():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / TEMPLATES, ignore_errors=True)
    if (source / TEMPLATES).is_dir():
        (folder / TEMPLATES).mkdir()
        for file in (source / TEMPLATES).glob("*.jinja"):
            shutil.copyfile(file, folder / TEMPLATES / file.name)
