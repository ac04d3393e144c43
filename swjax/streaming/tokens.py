"""The ids of the tokens that give a chat its structure."""

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that mark turns and videos in the chat template of Qwen2.5-VL.

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
    def from_tokenizer(cls, tokenizer: Any) -> "SpecialTokens":
        """Read the ids off a transformers tokenizer.

        Raises:
            ValueError: if one of the texts is not a single token of the tokenizer.
        """
        texts = {
            "im_start": "<|im_start|>",
            "im_end": "<|im_end|>",
            "vision_start": "<|vision_start|>",
            "vision_end": "<|vision_end|>",
            "video_pad": "<|video_pad|>",
            "image_pad": "<|image_pad|>",
            "assistant": "assistant",
            "newline": "\n",
        }
        ids = {name: tokenizer.encode(text, add_special_tokens=False) for name, text in texts.items()}
        unknown = getattr(tokenizer, "unk_token_id", None)
        split = [repr(texts[name]) for name, encoded in ids.items() if len(encoded) != 1 or encoded[0] == unknown]
        if split:
            raise ValueError(
                f"the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} does not have {', '.join(split)} as single "
                "tokens; a Qwen2.5-VL tokenizer is needed"
            )
        return cls(**{name: int(encoded[0]) for name, encoded in ids.items()})
