"""Text that arrives between the frames of a video, or after it, as token ids with the marks of the chat."""

import numpy as np
from jaxtyping import Int32

from swjax.data.chat import encode_chat, encode_parts
from swjax.streaming import DEFAULT_CHAT, ChatRule, SourceText, SpecialTokens
from swjax.streaming.tokens import Tokenizer


def encode_question(
    tokenizer: Tokenizer, special: SpecialTokens, question: str, chat: ChatRule = DEFAULT_CHAT
) -> SourceText:
    """A question in mid-stream: it closes the message of the frames so far and opens one for itself and those to come.

    So the sources read as the chat template writes several messages of a user, each a question and then its video.

    Args:
        tokenizer: the model's.
        special: its special tokens.
        question: what is asked.
        chat: how the model's family chats.

    Raises:
        ExampleError: if the question contains a special token written out, or half a character.
    """
    return SourceText((*special.trailer, *_message(tokenizer, special, question, chat)))


def encode_turn(
    tokenizer: Tokenizer,
    special: SpecialTokens,
    question: str | list[dict[str, str]],
    chat: ChatRule = DEFAULT_CHAT,
) -> Int32[np.ndarray, "S"]:
    """A question after the video, when the answer before it has ended: a message of the user without a video.

    Args:
        tokenizer, special, chat: as for `encode_question`.
        question: what is asked, or its texts and images as the parts of a chat template; an image is one token.

    Raises:
        ExampleError: as `encode_question`.
    """
    asked = question.strip() if isinstance(question, str) else question
    images = 0 if isinstance(question, str) else sum(part["type"] == "image" for part in question)
    turns = [([{"type": "text", "text": ""}, {"type": "video"}], ""), (asked, "")]
    ids = encode_parts(tokenizer, turns, [(1, 1, 1)] * (1 + images), merge_size=1, chat=chat)
    *_, start, stop = np.flatnonzero(ids == special.im_start)
    return ids[start:stop]


def _message(tokenizer: Tokenizer, special: SpecialTokens, text: str, chat: ChatRule) -> tuple[int, ...]:
    """`<|im_start|>user\\n`, the text and `<|vision_start|>`."""
    ids = encode_chat(tokenizer, question=text, answer=None, video_grid_thw=(1, 1, 1), merge_size=1, chat=chat)
    video = int(np.flatnonzero(ids == special.video_pad)[0])
    start = int(np.flatnonzero(ids[:video] == special.im_start)[-1])
    return tuple(ids[start:video].tolist())
