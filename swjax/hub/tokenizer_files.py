"""The files of a tokenizer, its processor and of generation, carried over as they are.

What transformers 5 would write for a tokenizer that it has read, transformers 4 does not load.
"""

from swjax.storage import AnyPath, copy_file, make_folder, remove_folder, resolved

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
