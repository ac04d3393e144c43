"""The sources before the first frame: the system prompt, the question and the token that opens the video."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from swjax.data.between_frames import encode_question, encode_turn
from swjax.data.chat import encode_chat, encode_parts
from swjax.data.example import VIDEO_TAG
from swjax.inference.frames import Frame
from swjax.inference.memory import KEEP_ALL
from swjax.inference.numbers import shown
from swjax.inference.settings import StreamSettings
from swjax.streaming import DEFAULT_CHAT, ChatRule, SpecialTokens
from swjax.streaming.tokens import Tokenizer

Piece = Int32[np.ndarray, "_"] | Frame
"""Tokens of text, or an image."""

Question = str | Sequence[str | Frame]
"""What is asked: a text, behind which the video stands, or texts, images and, for each video, `VIDEO_TAG`; a question
that shows no video is answered at once."""


def images_of(question: Question) -> list[Frame]:
    """The images that a question shows; none of what is no question."""
    return [part for part in question if isinstance(part, Frame)] if isinstance(question, Sequence) else []


@dataclass(frozen=True)
class Opening:
    """What a stream is asked at first.

    Attributes:
        prompt: what comes before the first frame, or all where there is no video.
        gaps: what follows each video, up to the next one or the answer.
    """

    prompt: tuple[Piece, ...]
    gaps: tuple[tuple[Piece, ...], ...]


def encode_opening(
    tokenizer: Tokenizer, special: SpecialTokens, question: Sequence[str | Frame], chat: ChatRule = DEFAULT_CHAT
) -> Opening:
    """A question of texts, images and videos.

    Args:
        tokenizer, special, chat: as for `encode_prompt`.
        question: its parts.

    Raises:
        ValueError: if a part is none, or the chat template does not show each where it stands.
    """
    parts = _template_parts(question)
    grids = [(1, 1, 1)] * sum(part["type"] != "text" for part in parts)
    ids = encode_parts(tokenizer, [(parts, None)], grids, merge_size=1, chat=chat)
    if tuple(ids[-len(special.prefix) :]) != special.prefix:
        raise ValueError(f"the chat template does not end with the assistant prefix; a {chat.name} tokenizer is needed")
    prompt, *gaps = _pieces(ids[: -len(special.prefix)], special, question)
    return Opening(prompt, tuple(gaps))


def _template_parts(question: Sequence[str | Frame]) -> list[dict[str, str]]:
    """A question of several parts as a chat template takes it."""
    if (
        not question
        or not isinstance(question, Sequence)
        or not all(isinstance(part, str | Frame) for part in question)
    ):
        raise ValueError(f"a question is text, or texts, images (make_frame) and {VIDEO_TAG!r}, got {shown(question)}")
    return [
        {"type": "image"} if isinstance(part, Frame) else {"type": "video"} if part == VIDEO_TAG else
        {"type": "text", "text": part}
        for part in question
    ]  # fmt: skip


def _pieces(
    ids: Int32[np.ndarray, "S"], special: SpecialTokens, question: Sequence[str | Frame]
) -> list[tuple[Piece, ...]]:
    """Texts and images of a question, up to its first video and between its videos, each one token of the ids."""
    images = iter(images_of(question))
    pieces: list[list[Piece]] = [[]]
    kinds = np.select([ids == special.image_pad, ids == special.video_pad], [1, 2])
    for kind, run in itertools.groupby(range(len(kinds)), lambda index: int(kinds[index])):
        indices = list(run)
        if kind == 2:
            pieces.append([])
        else:
            pieces[-1].append(next(images) if kind == 1 else ids[indices])
    return [tuple(some) for some in pieces]


def encode_prompt(
    tokenizer: Tokenizer, special: SpecialTokens, question: str, chat: ChatRule = DEFAULT_CHAT
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
    if not isinstance(question, str):
        raise ValueError(f"the question must be text, got {shown(question)}")
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
    tokenizer: Tokenizer,
    special: SpecialTokens,
    question: Question,
    *,
    is_turn: bool,
    vocab_size: int,
    chat: ChatRule = DEFAULT_CHAT,
) -> tuple[Piece, ...]:
    """Tokens and images of a question that is not the first, as `swjax.data.between_frames` has them.

    Args:
        tokenizer, special, chat: as for `encode_prompt`.
        question: what is asked; after the video, it may have images.
        is_turn: whether it comes after the video, not between two frames.
        vocab_size: tokens that the model knows.

    Raises:
        ValueError: if the question shows what cannot be shown where it is asked, is empty, or has tokens that the model
            does not know.
    """
    pieces: tuple[Piece, ...]
    if isinstance(question, str):
        if not question.strip():
            raise ValueError("the question is empty; ask something")
        if is_turn:
            pieces = (encode_turn(tokenizer, special, question, chat),)
        else:
            pieces = (np.array(encode_question(tokenizer, special, question, chat).token_ids, np.int32),)
    elif not is_turn:
        raise ValueError(
            f"a question between frames must be text, got {type(question).__name__}; show images before the first "
            "frame or behind the last"
        )
    else:
        parts = _template_parts(question)
        if VIDEO_TAG in question:
            raise ValueError("a question after the video shows another video; open a stream that shows both at first")
        (pieces,) = _pieces(encode_turn(tokenizer, special, parts, chat), special, question)
    largest = max(int(piece.max()) for piece in pieces if not isinstance(piece, Frame))
    if largest >= vocab_size:
        raise ValueError(f"the question has a token {largest}, and the model knows {vocab_size}")
    return pieces


def check_keeps_all(settings: StreamSettings) -> None:
    """Refuse to drop anything of a stream whose questions show more than one video.

    Raises:
        ValueError: if its memory or a rule would drop something.
    """
    if settings.memory != KEEP_ALL or settings.looks_by is not None:
        raise ValueError("images, several videos and text alone need memory keep_all, and no rule of dropping")


def open_stream(
    tokenizer: Tokenizer,
    question: Question,
    settings: StreamSettings,
    *,
    vocab_size: int,
    chat: ChatRule = DEFAULT_CHAT,
) -> tuple[SpecialTokens, Opening]:
    """What a stream begins with, of whatever its question is about.

    Args:
        tokenizer: the model's.
        question: what is asked: text about a video, or texts, images and videos.
        settings: how the stream is spoken about.
        vocab_size: tokens that the model knows.
        chat: how the model's family chats.

    Returns:
        The tokenizer's special tokens, and the pieces before and after each video.

    Raises:
        ValueError: as `begin_stream`; also if parts of a question are none, or `settings` would drop something of them.
    """
    if isinstance(question, str) or not isinstance(question, Sequence):
        special, prompt = begin_stream(tokenizer, question, settings, vocab_size=vocab_size, chat=chat)
        return special, Opening((prompt,), ((np.array(special.trailer, np.int32),),))
    special, _ = begin_stream(tokenizer, "", settings, vocab_size=vocab_size, chat=chat)
    opening = encode_opening(tokenizer, special, question, chat)
    texts = [piece for pieces in (opening.prompt, *opening.gaps) for piece in pieces if not isinstance(piece, Frame)]
    if max(int(ids.max()) for ids in texts) >= vocab_size:
        raise ValueError(f"the question has tokens beyond the {vocab_size} that the model knows")
    check_keeps_all(settings)
    return special, opening


def begin_stream(
    tokenizer: Tokenizer, question: str, settings: StreamSettings, *, vocab_size: int, chat: ChatRule = DEFAULT_CHAT
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
