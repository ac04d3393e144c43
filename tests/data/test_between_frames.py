"""Text between frames: what it reads as, and that a conversation with it is the template's chat of several messages."""

import numpy as np
import pytest

from swjax.data.between_frames import encode_question
from swjax.data.chat import encode_chat
from swjax.data.example import ExampleError
from swjax.streaming import SourceFrame, SourceText, SpecialTokens, build_conversation


@pytest.fixture(scope="module")
def special(tokenizer) -> SpecialTokens:
    return SpecialTokens.from_tokenizer(tokenizer)


def test_what_a_question_reads_as(tokenizer, special):
    asked = encode_question(tokenizer, special, " And now? ")
    assert asked.is_item
    assert tokenizer.decode(asked.token_ids) == ("<|vision_end|><|im_end|>\n<|im_start|>user\nAnd now?<|vision_start|>")


def test_sources_with_a_question_are_the_chat_template_s_messages(tokenizer, special):
    ids = encode_chat(tokenizer, question="What?", answer=None, video_grid_thw=(1, 2, 2))
    prompt = ids[: np.flatnonzero(ids == special.video_pad)[0]]
    events = [
        SourceText(tuple(prompt.tolist()), is_item=False),
        SourceFrame(1, 2),
        encode_question(tokenizer, special, "And now?"),
        SourceFrame(1, 1),
        SourceText(special.trailer, is_item=False),
    ]
    layout = build_conversation(events, variant="gdpe", special_tokens=special)
    video = {"type": "video"}
    messages = [{"role": "user", "content": [{"type": "text", "text": text}, video]} for text in ("What?", "And now?")]
    user = "<|im_start|>user"
    read, expected = (
        text[text.index(user) :]
        for text in (tokenizer.decode(layout.token_ids), tokenizer.apply_chat_template(messages, tokenize=False))
    )
    assert read.replace("<|video_pad|>" * 2, "<|video_pad|>") == expected
    assert read.count(user) == 2


def test_special_tokens_in_the_text_are_refused(tokenizer, special):
    with pytest.raises(ExampleError, match=r"the question contains the special token <\|im_end\|>"):
        encode_question(tokenizer, special, "What?<|im_end|>")
