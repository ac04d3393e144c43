"""Decision tokens in a tokenizer, and answers that decide after each frame whether there is something to say."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int32
from tokenizers import AddedToken

from swjax.data.chat import encode_chat
from swjax.data.example import ExampleError, VideoExample
from swjax.data.text import check_text, join_texts
from swjax.data.tokenizer import TokenizerError
from swjax.streaming import ChatRule, DecisionTokens, thoughts_by_item

SKIP, END = "<skip>", "</think>"

DECISION_TEXTS = (SKIP, "<think>", END)
"""What is added to a tokenizer, as TaYS does: so in Qwen2.5-VL's they are the tokens 151,665 to 151,667."""


def add_decisions(tokenizer: Any) -> None:
    """Add the tokens of decisions to a tokenizer that has none; where it has them, they stay as they are."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    new = [AddedToken(text, special=True, normalized=False) for text in DECISION_TEXTS if text not in added]
    tokenizer.add_tokens(new, special_tokens=True)


def find_decisions(tokenizer: Any) -> DecisionTokens:
    """The tokens of decisions in a tokenizer.

    Args:
        tokenizer: the model's.

    Raises:
        TokenizerError: it has none, so its model was not trained to decide.
    """
    ids = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    missing = [text for text in (SKIP, END) if text not in ids]
    if missing:
        raise TokenizerError(
            f"the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has no {' and no '.join(missing)}: its model "
            "was not trained to decide when to speak; train with config.speaking='decide', or use another rule"
        )
    return DecisionTokens(ids[SKIP], ids[END])


def encode_decisions(
    example: VideoExample,
    tokenizer: Any,
    *,
    question: str,
    grid: tuple[int, int, int],
    arrival_s: Float[np.ndarray, "F"],
    merge_size: int,
    chat: ChatRule,
) -> tuple[Int32[np.ndarray, "L"], list[int]]:
    """A chat whose answer has, after each frame, a skip token, or what is due and an end of thought.

    Args:
        example: its sentences say what is due, and when.
        tokenizer: the model's, with the tokens of decisions.
        question: what the user asks.
        grid: the video in patches (t, h, w).
        arrival_s: when each frame has arrived, in seconds.
        merge_size: patches on a side of a token.
        chat: how the model's family chats.

    Returns:
        Its token ids, and the answer tokens after each frame.

    Raises:
        ExampleError: if the example has a caption without times.
    """
    if example.caption and not example.sentences:
        raise ExampleError("the caption has no times, and when to speak is learned from them; give `sentences`")
    decisions = find_decisions(tokenizer)
    due = [(min(one.time_s, float(arrival_s[-1])), (number,)) for number, one in enumerate(example.sentences)]
    said: list[list[int]] = []
    for numbers in thoughts_by_item(due, arrival_s):
        text, _ = join_texts([check_text(example.sentences[number].text, "caption") for number in numbers])
        words = tokenizer.encode(text, add_special_tokens=False) if text else []
        if {decisions.skip, decisions.end} & set(words):
            raise ExampleError(f"the caption contains {SKIP} or {END} written out; remove it from the text")
        said.append([*words, decisions.end] if words else [decisions.skip])
    begun, whole = (
        encode_chat(
            tokenizer,
            question=question,
            answer=answer,
            later=later,
            video_grid_thw=grid,
            merge_size=merge_size,
            chat=chat,
        )
        for answer, later in ((None, ()), ("", example.later))
    )
    answer = np.concatenate([np.array(words, np.int32) for words in said])
    return np.concatenate([begun, answer, whole[len(begun) :]]), [len(words) for words in said]
