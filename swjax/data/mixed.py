"""Mixed chats: images, several videos, later turns about others, or text alone, as token ids."""

import numpy as np
from jaxtyping import Bool, Int, Int32

from swjax.data.chat import encode_mixed
from swjax.data.example import VIDEO_TAG, ExampleError, VideoExample
from swjax.data.pipeline_config import PipelineConfig
from swjax.streaming import ChatRule, SpecialTokens
from swjax.streaming.tokens import Tokenizer


def encode_mixed_text(
    example: VideoExample,
    config: PipelineConfig,
    tokenizer: Tokenizer,
    special_tokens: SpecialTokens,
    *,
    question: str,
    answer: str,
    grid_thw: Int[np.ndarray, "items 3"],
    is_image: Bool[np.ndarray, "items"],
    chat: ChatRule,
) -> Int32[np.ndarray, "L"]:
    """The chat of an example without a `video`, whose answers are long enough for the videos of their turns.

    Args:
        example: what it is about.
        config: how answers are spoken.
        tokenizer: the model's.
        special_tokens: their ids.
        question, answer: of its first turn.
        grid_thw: its images and videos in patches.
        is_image: which of them are images.
        chat: how it chats.

    Raises:
        ExampleError: a text cannot be used, or an answer is too short for the frames that it is to be spoken in.
    """
    if config.speaking == "decide" and not is_image.all():
        raise ExampleError("the chat has no times, and when to speak about a video is learned from them")
    turns = [(question, answer), *example.later]
    ids = encode_mixed(tokenizer, turns, grid_thw=grid_thw.tolist(), merge_size=config.geometry.merge_size, chat=chat)
    opens = np.flatnonzero((ids[:-1] == special_tokens.im_start) & (ids[1:] == special_tokens.assistant))
    frames = iter(grid_thw[~is_image, 0].tolist())
    for number, ((question, _), start) in enumerate(zip(turns, opens, strict=True)):
        count = sum(next(frames) for _ in range(question.count(VIDEO_TAG)))
        words = int(np.argmax(ids[start + len(special_tokens.prefix) :] == special_tokens.im_end))
        if words < config.wait_k * count:
            raise ExampleError(
                f"answer {number} has {words} tokens, too short for the {count} frames of its turn at {config.wait_k} "
                f"tokens a frame ({config.wait_k * count}); cut the videos or lower wait_k"
            )
    return ids
