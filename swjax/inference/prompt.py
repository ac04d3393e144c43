"""The sources before the first frame: the system prompt, the question and the token that opens the video."""

from typing import Any

import numpy as np
from jaxtyping import Int32

from swjax.data.chat import encode_chat
from swjax.streaming import SpecialTokens


def encode_prompt(tokenizer: Any, special: SpecialTokens, question: str) -> Int32[np.ndarray, "S"]:
    """Token ids of a question about a video, up to its first frame.

    Raises:
        ValueError: if the chat template does not end such a question with its video and the assistant prefix.
    """
    ids = encode_chat(tokenizer, question=question, answer=None, video_grid_thw=(1, 2, 2))
    (video,) = np.nonzero(ids == special.video_pad)
    behind = (*special.trailer, *special.prefix)
    if tuple(ids[video[0] + 1 :]) != behind:
        raise ValueError(
            "the chat template does not end a question with its video and the assistant prefix "
            f"({tokenizer.decode(ids[video[0] + 1 :])!r}); a Qwen2.5-VL tokenizer is needed"
        )
    return ids[: video[0]]
