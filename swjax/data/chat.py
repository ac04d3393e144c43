"""Chats: what is asked about a video and what is answered, as token ids.

The order is the paper's: system, then the user's question and after it the video, then the answer.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from swjax.data.example import ExampleError
from swjax.data.text import check_text, join_texts
from swjax.streaming import DEFAULT_CHAT, ChatRule, Geometry

EVALUATION_QUESTION = "Describe the scene in this video and the activity that takes place in it."
TRAINING_QUESTIONS = (
    "Sum up the actions and events of this video.",
    "Which actions are performed in this video?",
    "Name the key objects in this video and say how they move.",
    EVALUATION_QUESTION,
)
"""The four generic questions of the paper's set-up (section 4), in our own words."""


def training_question(key: str, *, seed: int, epoch: int) -> str:
    """The generic question that an example is asked in an epoch: random, but always the same one."""
    return random.Random(f"{seed}/{epoch}/{key}").choice(TRAINING_QUESTIONS)


def encode_chat(
    tokenizer: Any,
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
    texts = [("question", question), ("answer", answer or "")]
    texts += [pair for asked, answered in later for pair in (("question", asked), ("answer", answered))]
    structure = _structural_tokens(tokenizer, chat)
    for name, text in texts:
        check_text(text, name)
        written = [token for token in structure if token in text]
        if written:
            raise ExampleError(f"the {name} contains the special token {written[0]}; remove it from the text")
    messages: list[dict[str, Any]] = [{"role": "system", "content": chat.system_prompt}] if chat.system_prompt else []
    messages.append({"role": "user", "content": [{"type": "text", "text": question.strip()}, {"type": "video"}]})
    if answer is not None:
        messages.append({"role": "assistant", "content": answer.strip()})
    for asked, answered in later:
        messages.append({"role": "user", "content": asked.strip()})
        messages.append({"role": "assistant", "content": answered.strip()})
    template_ids = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=answer is None, return_dict=False
    )
    ids = np.asarray(template_ids, np.int32)
    is_video = ids == tokenizer.convert_tokens_to_ids(chat.video_pad)
    if is_video.sum() != 1:
        raise ValueError(
            f"the chat template of the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} places the video "
            f"{int(is_video.sum())} times; a {chat.name} tokenizer places {chat.video_pad} once"
        )
    t, h, w = (int(size) for size in np.asarray(video_grid_thw).reshape(3))
    return np.repeat(ids, np.where(is_video, t * h * w // merge_size**2, 1))


def _structural_tokens(tokenizer: Any, chat: ChatRule) -> list[str]:
    """The tokens that a text may not hold: those that give a chat its structure, and others marked as special.

    Words that somebody added to the vocabulary, and Qwen's <tool_call>, are text like any other.
    """
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return list(dict.fromkeys([*chat.added_tokens, *special]))


def sentence_tokens(tokenizer: Any, sentences: Sequence[str]) -> Int32[np.ndarray, "sentences"]:
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
