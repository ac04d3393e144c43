"""The sources before the first frame: the system prompt, the question and the token that opens the video."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int32

from swjax.data.between_frames import encode_question, encode_turn
from swjax.data.chat import encode_chat
from swjax.inference.numbers import shown
from swjax.inference.settings import StreamSettings
from swjax.streaming import DEFAULT_CHAT, ChatRule, SpecialTokens


def encode_prompt(
    tokenizer: Any, special: SpecialTokens, question: str, chat: ChatRule = DEFAULT_CHAT
) -> Int32[np.ndarray, "S"]:
    """Token ids of a question about a video, up to its first frame.

    Args:
        tokenizer: the model's.
        special: its special tokens.
        question: what is asked.
        chat: how the model's family chats.

    Raises:
        ValueError: if the question is no text, or the chat template does not end such a question with its video and
            the assistant prefix.
    """
    _check_text(question)
    ids = encode_chat(tokenizer, question=question, answer=None, video_grid_thw=(1, 1, 1), merge_size=1, chat=chat)
    (video,) = np.nonzero(ids == special.video_pad)
    behind = (*special.trailer, *special.prefix)
    if tuple(ids[video[0] + 1 :]) != behind:
        raise ValueError(
            "the chat template does not end a question with its video and the assistant prefix "
            f"({tokenizer.decode(ids[video[0] + 1 :])!r}); a {chat.name} tokenizer is needed"
        )
    return ids[: video[0]]


def encode_later(
    tokenizer: Any,
    special: SpecialTokens,
    question: str,
    *,
    is_turn: bool,
    vocab_size: int,
    chat: ChatRule = DEFAULT_CHAT,
) -> Int32[np.ndarray, "S"]:
    """Token ids of a question that is not the first, as `swjax.data.between_frames` has them.

    Args:
        tokenizer, special, question, chat: as for `encode_prompt`.
        is_turn: whether it comes after the video, not between two frames.
        vocab_size: tokens that the model knows.

    Raises:
        ValueError: if the question is no text, is empty, or has tokens that the model does not know.
    """
    _check_text(question)
    if not question.strip():
        raise ValueError("the question is empty; ask something")
    if is_turn:
        ids = encode_turn(tokenizer, special, question, chat)
    else:
        ids = np.array(encode_question(tokenizer, special, question, chat).token_ids, np.int32)
    if ids.max() >= vocab_size:
        raise ValueError(f"the question has a token {ids.max()}, and the model knows {vocab_size}")
    return ids


def _check_text(question: str) -> None:
    if not isinstance(question, str):
        raise ValueError(f"the question must be text, got {shown(question)}")


def begin_stream(
    tokenizer: Any, question: str, settings: StreamSettings, *, vocab_size: int, chat: ChatRule = DEFAULT_CHAT
) -> tuple[SpecialTokens, Int32[np.ndarray, "S"]]:
    """What every stream begins with: the tokenizer's special tokens, and the prompt.

    Args:
        tokenizer: the model's.
        question: what is asked.
        settings: how the stream is spoken about.
        vocab_size: tokens that the model knows.
        chat: how the model's family chats.

    Raises:
        ValueError: if settings, tokenizer or question cannot be used with a model of so many tokens.
    """
    if not isinstance(settings, StreamSettings):
        raise ValueError(f"settings must be StreamSettings, got {shown(settings)}")
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ValueError(f"a fast tokenizer of transformers is needed (load_tokenizer), got {shown(tokenizer)}")
    special = SpecialTokens.from_tokenizer(tokenizer, chat)
    prompt = encode_prompt(tokenizer, special, question, chat)
    largest = max(*dataclasses.astuple(special), int(prompt.max()))
    if largest >= vocab_size:
        raise ValueError(
            f"the tokenizer gives a token {largest}, and the model knows {vocab_size}; use the model's own tokenizer"
        )
    return special, prompt
