"""The tokenizer: the small one that is shipped with Moving Shapes, or one in a folder."""

import json
from pathlib import Path
from typing import Any

from swjax.data.chat import encode_chat
from swjax.notice import notify
from swjax.storage import AnyPath, as_path, local_folder
from swjax.streaming import DEFAULT_CHAT, ChatRule, SpecialTokens
from swjax.streaming.tokens import Tokenizer

SHIPPED_TOKENIZER = Path(__file__).parent / "moving_shapes" / "tokenizer"

TEMPLATE_FILE = "chat_template.jinja"
"""The file that a chat template is written to."""

_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))

_FILES = ("*.json", "*.txt", "*.jinja", "additional_chat_templates/*.jinja")

_INSTEAD = (
    "put chat_template.json of the released checkpoint beside it, or take every template away to use swjax's, which "
    "chats as Qwen2.5-VL does"
)


class TokenizerError(ValueError):
    """A tokenizer cannot be loaded, or does not chat as the model does."""


def load_tokenizer(path: str | AnyPath | None = None, chat: ChatRule = DEFAULT_CHAT) -> Tokenizer:
    """Load a tokenizer with `transformers.AutoTokenizer`, from disk only, and try its chat template on a video.

    A folder without any chat template gets the shipped one, with a notice.

    Args:
        path: a folder with tokenizer.json (or vocab.json and merges.txt), tokenizer_config.json and a chat template,
            such as a checkpoint's; None for the small one that is shipped.
        chat: how the model's family chats.

    Returns:
        A transformers tokenizer with the family's special tokens and a chat template (`find_chat_template`).

    Raises:
        TokenizerError: if the folder or its vocabulary is missing or cannot be read, if a special token is missing, or
            if the chat template cannot write a chat about a video; the message says which, where and why.
    """
    folder = SHIPPED_TOKENIZER if path is None else local_folder(as_path(path), _FILES)
    if not any(all((folder / name).is_file() for name in names) for names in _VOCABULARIES):
        what = "has no tokenizer.json, nor vocab.json with merges.txt" if folder.is_dir() else "is not a folder"
        raise TokenizerError(f"{folder} {what}; give a folder with a tokenizer, or none for the shipped one")
    from transformers import AutoTokenizer  # here, because it takes seconds to import

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    except Exception as error:  # transformers and tokenizers raise many kinds, bare Exception among them
        raise TokenizerError(f"the tokenizer in {folder} cannot be read: {_words(error)}") from error
    missing = [token for token in chat.added_tokens if token not in added]
    if missing:
        raise TokenizerError(f"the tokenizer in {folder} lacks {chat.name}'s special tokens {', '.join(missing)}")
    try:
        special = SpecialTokens.from_tokenizer(tokenizer, chat)
    except Exception as error:  # it is the first use, at which a value of a wrong type shows
        raise TokenizerError(f"the tokenizer in {folder} cannot be used: {_words(error)}") from error
    found = find_chat_template(folder)
    if found is None:
        notify(f"{folder} has no chat template; taking swjax's, which writes chats as Qwen2.5-VL's does")
        file = SHIPPED_TOKENIZER / TEMPLATE_FILE
        found = _read_text(file), file
    tokenizer.chat_template, where = found
    reason = _try_on_a_video(tokenizer, special, chat)
    if reason:
        raise TokenizerError(f"the chat template in {where} cannot write a chat about a video: {reason}; {_INSTEAD}")
    return tokenizer


def find_chat_template(folder: Path) -> tuple[str, Path] | None:
    """The chat template that transformers' processor takes, else the tokenizer's own, and the file that it stands in.

    The processor looks into processor_config.json, chat_template.json, chat_template.jinja and
    additional_chat_templates/, in this order (transformers 5.23, `ProcessorMixin.get_processor_dict`); released
    Qwen2.5-VL folders hold theirs in chat_template.json, and one for text alone in tokenizer_config.json.

    Args:
        folder: a checkpoint's or tokenizer's folder.

    Returns:
        The template and its file; None if there is none.

    Raises:
        TokenizerError: a file is damaged, or holds several templates and none named "default".
    """
    for file in (folder / "processor_config.json", folder / "chat_template.json"):
        template = _template_in(file)
        if template is not None:
            return _choose_default(template, file), file
        if file.name == "chat_template.json" and file.is_file():
            raise TokenizerError(f'{file} has no key "chat_template"; {_INSTEAD}')
    additional = folder / "additional_chat_templates"
    for file in (folder / TEMPLATE_FILE, additional / "default.jinja"):
        if file.is_file():
            return _read_text(file), file
    others = {file.stem: "" for file in additional.glob("*.jinja")}
    if others:
        return _choose_default(others, additional), additional
    file = folder / "tokenizer_config.json"
    template = _template_in(file)
    return None if template is None else (_choose_default(template, file), file)


def _template_in(file: Path) -> Any:
    """What a JSON file holds as chat template or templates; None for nothing."""
    content = _read_json(file) if file.is_file() else None
    return content.get("chat_template") if isinstance(content, dict) else None


def _choose_default(templates: object, file: Path) -> str:
    """The one template, or the one named "default" of several, by name or as rows with `name` and `template`."""
    if isinstance(templates, str):
        return templates
    if isinstance(templates, list) and all(isinstance(row, dict) for row in templates):
        templates = {row.get("name"): row.get("template") for row in templates}
    found = templates.get("default") if isinstance(templates, dict) else None
    if not isinstance(found, str):
        names = f"templates {', '.join(map(str, templates))}" if isinstance(templates, dict) else "no template"
        raise TokenizerError(f'{file} holds {names} and none named "default", which chats are written with; {_INSTEAD}')
    return found


def _try_on_a_video(tokenizer: Tokenizer, special: SpecialTokens, chat: ChatRule) -> str:
    """What is wrong with the chat template, '' where nothing is."""
    try:
        prompt, whole = (
            encode_chat(
                tokenizer,
                question="Why?",
                answer=answer,
                later=later,
                video_grid_thw=(1, 1, 1),
                merge_size=1,
                chat=chat,
            ).tolist()
            for answer, later in ((None, ()), ("So.", (("And then?", "No."),)))
        )
    except Exception as error:  # a template is a program: it may raise anything
        alone = "it takes text alone: " if isinstance(error, TypeError) else ""
        return f"{alone}{_words(error)}"
    behind = [special.video_pad, *special.trailer, *special.prefix]
    if prompt[-len(behind) :] != behind:
        written = tokenizer.decode(prompt[prompt.index(special.video_pad) :])
        return f"it ends a question with {written!r} and not with its video and `{chat.im_start}{chat.assistant}\\n`"
    answered = whole[: len(prompt)] == prompt and whole[-2:] == [special.im_end, special.newline]
    if not answered or whole.count(special.im_start) != 4 + bool(chat.system_prompt):
        return f"it writes a chat of two questions and answers as {tokenizer.decode(whole)!r}"
    return ""


def _words(error: Exception) -> str:
    line = f", line {getattr(error, 'lineno', '?')}" if type(error).__name__ == "TemplateSyntaxError" else ""
    return f"{type(error).__name__}: {error}{line}"


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{file} cannot be read: {error}") from error


def _read_json(file: Path) -> Any:
    try:
        return json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, TokenizerError) else TokenizerError(f"{file} is damaged: {error}") from error
