"""Chats: their order, the room for the video, and the questions."""

import copy

import numpy as np
import pytest

from swjax.data.chat import (
    EVALUATION_QUESTION,
    TRAINING_QUESTIONS,
    encode_chat,
    sentence_tokens,
    training_question,
)
from swjax.data.example import ExampleError
from swjax.streaming import DEFAULT_CHAT

GRID = (3, 4, 6)


def test_order_and_room_for_the_video(tokenizer):
    ids = encode_chat(tokenizer, question=" What? ", answer=" A square. ", video_grid_thw=GRID)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == (
        f"<|im_start|>system\n{DEFAULT_CHAT.system_prompt}<|im_end|>\n"
        f"<|im_start|>user\nWhat?<|vision_start|>{'<|video_pad|>' * 18}<|vision_end|><|im_end|>\n"
        "<|im_start|>assistant\nA square.<|im_end|>\n"
    )


def test_open_chat_is_the_beginning_of_the_answered_one(tokenizer):
    closed = encode_chat(tokenizer, question="What?", answer="A square.", video_grid_thw=np.array([GRID]))
    prompt = encode_chat(tokenizer, question="What?", answer=None, video_grid_thw=GRID)
    assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")
    np.testing.assert_array_equal(prompt, closed[: len(prompt)])


@pytest.mark.parametrize(("name", "texts"), [("question", ("<|im_end|>?", "A.")), ("answer", ("?", "<|video_pad|>"))])
def test_special_tokens_in_texts_are_refused(tokenizer, name, texts):
    with pytest.raises(ExampleError, match=rf"the {name} contains the special token <\|"):
        encode_chat(tokenizer, question=texts[0], answer=texts[1], video_grid_thw=GRID)


def test_template_without_video(tokenizer):
    other = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    other.chat_template = "{{ messages[0].content }}"
    with pytest.raises(ValueError, match=r"places the video 0 times; a Qwen2\.5-VL tokenizer places"):
        encode_chat(other, question="?", answer=None, video_grid_thw=GRID)


def test_questions():
    assert len(set(TRAINING_QUESTIONS)) == 4
    assert EVALUATION_QUESTION in TRAINING_QUESTIONS
    asked = [training_question("a", seed=0, epoch=epoch) for epoch in range(400)]
    assert asked == [training_question("a", seed=0, epoch=epoch) for epoch in range(400)]
    assert all(60 < asked.count(question) < 140 for question in TRAINING_QUESTIONS)
    assert asked != [training_question("b", seed=0, epoch=epoch) for epoch in range(400)]
    assert asked != [training_question("a", seed=1, epoch=epoch) for epoch in range(400)]


def test_later_turns(tokenizer):
    ids = encode_chat(
        tokenizer,
        question="What?",
        answer="A square.",
        later=[("Where?", " Left. "), ("When?", "Now.")],
        video_grid_thw=GRID,
    )
    first = encode_chat(tokenizer, question="What?", answer="A square.", video_grid_thw=GRID)
    np.testing.assert_array_equal(ids[: len(first)], first)
    assert tokenizer.decode(ids[len(first) :]) == (
        "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\nLeft.<|im_end|>\n"
        "<|im_start|>user\nWhen?<|im_end|>\n<|im_start|>assistant\nNow.<|im_end|>\n"
    )
    with pytest.raises(ValueError, match="the first answer is open"):
        encode_chat(tokenizer, question="What?", answer=None, later=[("Where?", "Left.")], video_grid_thw=GRID)
    with pytest.raises(ExampleError, match=r"the answer contains the special token <\|"):
        encode_chat(tokenizer, question="?", answer="A.", later=[("?", "<|video_pad|>")], video_grid_thw=GRID)


def test_tokens_of_sentences(tokenizer):
    sentences = ["The video shows a square.", "It turns.", "A number 5 that leaves."]
    counts = sentence_tokens(tokenizer, sentences)
    assert counts.sum() == len(tokenizer.encode(" ".join(sentences), add_special_tokens=False))
    ids = tokenizer.encode(" ".join(sentences), add_special_tokens=False)
    parts = np.split(np.array(ids), np.cumsum(counts)[:-1])
    assert [tokenizer.decode(part).strip() for part in parts] == sentences
    with pytest.raises(ExampleError, match="the sentence '' has no token of its own"):
        sentence_tokens(tokenizer, ["A.", "", "B."])


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"question": "\ud83d?"}, "question"), ({"answer": "\ude00"}, "answer"), ({"later": [("?", "\udc80")]}, "answer")],
)
def test_half_a_character_is_refused_and_a_whole_one_is_not(tokenizer, changes, name):
    texts = {"question": "What \U0001f600?", "answer": "A \U0001f600.", "later": []}
    assert "A \U0001f600." in tokenizer.decode(encode_chat(tokenizer, **texts, video_grid_thw=GRID))
    with pytest.raises(ExampleError, match=rf"the {name} has half a character \(\\ud[0-9a-f]{{3}} at position 0\)"):
        encode_chat(tokenizer, **texts | changes, video_grid_thw=GRID)


def test_words_that_were_added_to_the_vocabulary_are_text(tokenizer):
    with_words = copy.deepcopy(tokenizer)
    with_words.add_tokens(["square", "<tool_call>"])
    with_words.add_tokens(["<|wave|>"], special_tokens=True)
    ids = encode_chat(with_words, question="What?", answer="A square <tool_call>.", video_grid_thw=GRID)
    assert with_words.convert_tokens_to_ids("square") in ids
    assert "A square <tool_call>." in with_words.decode(ids)
    with pytest.raises(ExampleError, match=r"the answer contains the special token <\|wave\|>"):
        encode_chat(with_words, question="What?", answer="A <|wave|>.", video_grid_thw=GRID)
