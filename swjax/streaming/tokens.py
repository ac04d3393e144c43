"""The tokens that give a chat its structure: their texts, which a family of models chooses, and their ids."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class ChatRule:
    """How the models of a family chat; defaults are those of Qwen2-VL and those after it.

    A message is im_start, the speaker's name, newline, text, im_end, newline; a video in it is vision_start, a pad for
    each of its tokens, vision_end.

    Attributes:
        im_start, im_end, vision_start, vision_end, video_pad, image_pad: texts of tokens that the vocabulary has
            beside its words.
        assistant, newline: texts of ordinary tokens, which follow im_start in an answer.
        system_prompt: what a chat begins with; '' for no such message.
        name: of who chats so, for messages.
    """

    im_start: str = "<|im_start|>"
    im_end: str = "<|im_end|>"
    vision_start: str = "<|vision_start|>"
    vision_end: str = "<|vision_end|>"
    video_pad: str = "<|video_pad|>"
    image_pad: str = "<|image_pad|>"
    assistant: str = "assistant"
    newline: str = "\n"
    system_prompt: str = "You are a helpful assistant."
    name: str = "Qwen2.5-VL"

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """Texts that stand in no question and no answer."""
        return self.im_start, self.im_end, self.vision_start, self.vision_end, self.image_pad, self.video_pad


DEFAULT_CHAT = ChatRule()
"""What is taken where there is no model to ask."""


@runtime_checkable
class Tokenizer(Protocol):
    """What is asked of a tokenizer of transformers."""

    name_or_path: str
    chat_template: str
    bos_token_id: int | None
    pad_token_id: int
    added_tokens_decoder: Mapping[int, Any]

    encode: Callable[..., list[int]]
    decode: Callable[..., str]
    convert_tokens_to_ids: Callable[..., Any]
    convert_ids_to_tokens: Callable[..., Any]
    apply_chat_template: Callable[..., Any]
    add_tokens: Callable[..., int]
    __call__: Callable[..., Any]

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that mark turns and videos in a chat, by the names of `ChatRule`.

    `assistant` and `newline` are ordinary tokens; they stand here because the prefix of an answer is
    `<|im_start|>assistant\\n` and its end `<|im_end|>\\n`.
    """

    im_start: int
    im_end: int
    vision_start: int
    vision_end: int
    video_pad: int
    image_pad: int
    assistant: int
    newline: int

    def __post_init__(self) -> None:
        """Refuse ids that cannot be told apart, as those of tokens which a tokenizer does not know."""
        names: dict[int, str] = {}
        for name, token in dataclasses.asdict(self).items():
            if token < 0:
                raise ValueError(f"{name} has the id {token}; every special token needs one of its own, from 0 on")
            if token in names:
                raise ValueError(f"{names[token]} and {name} share the id {token}; one of them is unknown")
            names[token] = name

    @property
    def prefix(self) -> tuple[int, int, int]:
        """The tokens that open an answer: `<|im_start|>assistant\\n`."""
        return self.im_start, self.assistant, self.newline

    @property
    def trailer(self) -> tuple[int, int, int]:
        """The sources that follow the last frame: `<|vision_end|><|im_end|>\\n`."""
        return self.vision_end, self.im_end, self.newline

    @classmethod
    def qwen2_5_vl(cls) -> "SpecialTokens":
        """The ids of the released Qwen2.5-VL tokenizers."""
        return cls(
            im_start=151644,
            im_end=151645,
            vision_start=151652,
            vision_end=151653,
            video_pad=151656,
            image_pad=151655,
            assistant=77091,
            newline=198,
        )

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer, chat: ChatRule = DEFAULT_CHAT) -> "SpecialTokens":
        """Read the ids off a transformers tokenizer.

        Args:
            tokenizer: the tokenizer.
            chat: how the model's family chats.

        Raises:
            ValueError: if one of the texts is not a single token of the tokenizer.
        """
        texts = {field.name: getattr(chat, field.name) for field in dataclasses.fields(cls)}
        ids = {name: tokenizer.encode(text, add_special_tokens=False) for name, text in texts.items()}
        unknown = getattr(tokenizer, "unk_token_id", None)
        split = [repr(texts[name]) for name, encoded in ids.items() if len(encoded) != 1 or encoded[0] == unknown]
        if split:
            raise ValueError(
                f"the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} does not have {', '.join(split)} as single "
                f"tokens; a {chat.name} tokenizer is needed"
            )
        return cls(**{name: int(encoded[0]) for name, encoded in ids.items()})
