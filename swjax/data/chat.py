"""Chats: what is asked about a video and what is answered, as token ids.

The order is the paper's: system, then the user's question and after it the video, then the answer.
"""

import math
import random
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from swjax.data.example import IMAGE_TAG, VIDEO_TAG, ExampleError
from swjax.data.text import check_text, join_texts
from swjax.plain import Json
from swjax.streaming import DEFAULT_CHAT, ChatRule, Geometry
from swjax.streaming.tokens import Tokenizer

EVALUATION_QUESTION = "Describe the scene in this video and the activity that takes place in it."
TRAINING_QUESTIONS = (
    "Sum up the actions and events of this video.",
    "Which actions are performed in this video?",
    "Name the key objects in this video and say how they move.",
    EVALUATION_QUESTION,
)
"""The four generic questions of the paper's set-up (section 4), in our own words."""


def training_question(key: str, *, seed: int, epoch: int) -> str:
    """The generic question that an example is asked in an epoch: random, but always the same one.

    Args:
        key: of the example.
        seed: of the run.
        epoch: from 0.
    """
    return random.Random(f"{seed}/{epoch}/{key}").choice(TRAINING_QUESTIONS)


def encode_chat(
    tokenizer: Tokenizer,
    *,
    question: str,
    answer: str | None,
    video_grid_thw: Sequence[int] | np.ndarray,
    later: Sequence[tuple[str, str]] = (),
    merge_size: int = Geometry.merge_size,
    chat: ChatRule = DEFAULT_CHAT,
) -> Int32[np.ndarray, "L"]:
    """Encode a chat about one video with the tokenizer's chat template.

    Args:
        tokenizer: the model's, with a chat template (`swjax.data.tokenizer.load_tokenizer`).
        question: the user's text; it stands before the video.
        answer: the assistant's text; None ends the chat at the prompt for an answer.
        video_grid_thw: (t, h, w) of the video in patches.
        later: questions and answers of the turns that follow, without videos of their own.
        merge_size: patches on a side of the square that becomes one token.
        chat: how the model's family chats.

    Returns:
        int32[L] in chat order, with t * h * w / merge_size**2 tokens that stand for the video.

    Raises:
        ExampleError: if question or answer contain a special token written out, or half a character.
        ValueError: if the chat template does not place the video exactly once.
    """
    if answer is None and later:
        raise ValueError("the first answer is open, so no turn can follow it")
    first: list[dict[str, str]] = [{"type": "text", "text": question.strip()}, {"type": "video"}]
    turns: list[tuple[Any, str | None]] = [(first, answer), *((asked.strip(), answered) for asked, answered in later)]
    return encode_parts(tokenizer, turns, [video_grid_thw], merge_size=merge_size, chat=chat)


def encode_mixed(
    tokenizer: Tokenizer,
    turns: Sequence[tuple[str, str | None]],
    *,
    grid_thw: Sequence[Sequence[int]],
    merge_size: int = Geometry.merge_size,
    chat: ChatRule = DEFAULT_CHAT,
) -> Int32[np.ndarray, "L"]:
    """Encode a chat about images and videos, each where its tag stands in a question, or about nothing to look at.

    Args:
        tokenizer: the model's.
        turns: questions, with `IMAGE_TAG` and `VIDEO_TAG`, and answers; None for an answer ends the chat at its prompt.
        grid_thw: (t, h, w) of the images and videos in patches, in the order of their tags.
        merge_size, chat: as for `encode_chat`.

    Raises:
        ExampleError, ValueError: as `encode_chat`.
    """
    parts = [(_parts(asked), said) for asked, said in turns]
    return encode_parts(tokenizer, parts, grid_thw, merge_size=merge_size, chat=chat)


def _parts(question: str) -> str | list[dict[str, str]]:
    """A question as parts of text, images and videos; one of text alone as it is."""
    kinds = {IMAGE_TAG: {"type": "image"}, VIDEO_TAG: {"type": "video"}}
    pieces = re.split(f"({'|'.join(kinds)})", question.strip())
    return [kinds.get(piece, {"type": "text", "text": piece}) for piece in pieces if piece] if pieces[1:] else pieces[0]


def encode_parts(
    tokenizer: Tokenizer,
    turns: Sequence[tuple[str | list[dict[str, str]], str | None]],
    grids: Sequence[Sequence[int] | np.ndarray],
    *,
    merge_size: int,
    chat: ChatRule,
) -> Int32[np.ndarray, "L"]:
    """As `encode_mixed`, of questions whose text, images and videos are the parts of a chat template.

    Args:
        tokenizer, merge_size, chat: as for `encode_mixed`.
        turns: of each the parts of the question and the answer, None where it is open.
        grids: patches of each image and video (t, h, w), in order.
    """
    structure = _structural_tokens(tokenizer, chat)

    def checked(text: str, name: str) -> str:
        check_text(text, name)
        written = [token for token in structure if token in text]
        if written:
            raise ExampleError(f"the {name} contains the special token {written[0]}; remove it from the text")
        return text

    prompt = checked(chat.system_prompt, "system prompt")
    messages: list[Json] = [{"role": "system", "content": prompt}] if prompt else []
    for question, answer in turns:
        for text in [question] if isinstance(question, str) else [part.get("text", "") for part in question]:
            checked(text, "question")
        messages.append({"role": "user", "content": question})
        if answer is not None:
            messages.append({"role": "assistant", "content": checked(answer, "answer").strip()})
    template_ids = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=turns[-1][1] is None, return_dict=False
    )
    ids = np.asarray(template_ids, np.int32)
    pads = tokenizer.convert_tokens_to_ids([chat.video_pad, chat.image_pad])
    is_pad = np.isin(ids, pads)
    shown = [part["type"] for question, _ in turns if not isinstance(question, str) for part in question]
    kinds = [pads[kind == "image"] for kind in shown if kind != "text"]
    if ids[is_pad].tolist() != kinds or len(kinds) != len(grids):
        what, once = "the video", f"{chat.video_pad} once"
        if kinds != pads[:1]:
            what, once = f"{len(kinds)} images and videos", f"{chat.image_pad} or {chat.video_pad} once for each"
        raise ValueError(
            f"the chat template of the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} places {what} "
            f"{int(is_pad.sum())} times; a {chat.name} tokenizer places {once}"
        )
    counts = np.ones(len(ids), np.int64)
    counts[is_pad] = [math.prod(map(int, np.asarray(grid).reshape(3))) // merge_size**2 for grid in grids]
    return np.repeat(ids, counts)


def _structural_tokens(tokenizer: Tokenizer, chat: ChatRule) -> list[str]:
    """The tokens that a text may not hold: those that give a chat its structure, and others marked as special.

    Words that somebody added to the vocabulary, and Qwen's <tool_call>, are text like any other.
    """
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return list(dict.fromkeys([*chat.added_tokens, *special]))


def sentence_tokens(tokenizer: Tokenizer, sentences: Sequence[str]) -> Int32[np.ndarray, "sentences"]:
    """How many tokens of an answer belong to each of its sentences, which `join_texts` joins.

    A token that reaches over a boundary belongs to the later sentence; one whose only token does so has none.

    Raises:
        ExampleError: if a sentence is blank.
    """
    joined, starts = join_texts(sentences)
    encoded = tokenizer(joined, add_special_tokens=False, return_offsets_mapping=True)
    last_characters = np.array([stop - 1 for _, stop in encoded["offset_mapping"]])
    counts = np.bincount(np.searchsorted(starts[1:], last_characters, side="right"), minlength=len(sentences))
    for sentence in sentences:
        if not sentence.strip():
            raise ExampleError(f"the sentence {sentence!r} has no token of its own")
    return counts.astype(np.int32)
