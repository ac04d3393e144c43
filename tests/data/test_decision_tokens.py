"""Answers that decide after each frame whether to speak, in the tokenizer, in chats and in its files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from swjax.data.between_frames import encode_question
from swjax.data.chat import encode_chat
from swjax.data.decisions import DECISION_TEXTS, add_decisions, encode_decisions, encode_questions, find_decisions
from swjax.data.example import ExampleError, Question, Sentence, VideoExample
from swjax.data.tokenizer import SHIPPED_TOKENIZER, TokenizerError, load_tokenizer
from swjax.hub.tokenizer_files import copy_tokenizer, write_added_tokens
from swjax.streaming import (
    DEFAULT_CHAT,
    DESIGNS,
    SourceFrame,
    SourceText,
    SpecialTokens,
    Spoken,
    Variant,
    build_conversation,
    build_layout,
    decide_after_items,
)

GRID = (5, 4, 4)
ARRIVALS = np.arange(1.0, 6.0)


@pytest.fixture(scope="module")
def tokenizer():
    made = load_tokenizer()
    add_decisions(made)
    return made


def example(*sentences, later=(), questions=(), caption=""):
    timed = tuple(Sentence(text, time) for text, time in sentences)
    return VideoExample("k", Path("x.mp4"), None, caption, sentences=timed, questions=questions, later=later)


def encode(tokenizer, one):
    return encode_decisions(
        one, tokenizer, question="What happens?", grid=GRID, arrival_s=ARRIVALS, merge_size=2, chat=DEFAULT_CHAT
    )


def test_each_frame_has_silence_or_what_is_due(tokenizer):
    decisions = find_decisions(tokenizer)
    told = example(
        ("A red circle enters.", 0.2), ("It hits a wall.", 2.5), ("It turns blue.", 2.6), ("It leaves.", 9.0)
    )
    ids, counts = encode(tokenizer, told)
    begun = encode_chat(tokenizer, question="What happens?", answer=None, video_grid_thw=GRID)
    np.testing.assert_array_equal(ids[: len(begun)], begun)
    answer = ids[len(begun) :].tolist()
    pieces = [answer[end - count : end] for end, count in zip(np.cumsum(counts), counts, strict=True)]
    assert [piece[-1] for piece in pieces] == [
        decisions.end,
        decisions.skip,
        decisions.end,
        decisions.skip,
        decisions.end,
    ]
    said = [tokenizer.decode(piece[:-1]) for piece in pieces]
    assert said == ["A red circle enters.", "", "It hits a wall. It turns blue.", "", "It leaves."]
    special = SpecialTokens.from_tokenizer(tokenizer)
    assert answer[sum(counts) :] == [special.im_end, special.newline]


@pytest.mark.parametrize("variant", [name for name in Variant if DESIGNS[name].speaks_while_watching])
def test_the_layout_is_that_of_a_conversation_that_decides(tokenizer, variant):
    ids, counts = encode(tokenizer, example(("One.", 1.5), ("Two.", 4.0)))
    special, decisions = SpecialTokens.from_tokenizer(tokenizer), find_decisions(tokenizer)
    layout = build_layout(ids, np.array([GRID]), variant=variant, schedule=counts, special_tokens=special)
    (video,) = np.split(np.flatnonzero(ids == special.video_pad), 1)
    sources = [
        SourceText(tuple(ids[: video[0]].tolist()), is_item=False),
        *[SourceFrame(2, 2)] * GRID[0],
        SourceText(special.trailer, is_item=False),
    ]
    thoughts = [(), tuple(tokenizer.encode("One.")), (), tuple(tokenizer.encode("Two.")), ()]
    events = decide_after_items(sources, thoughts, decisions=decisions, special_tokens=special)
    other = build_conversation(events, variant=variant, special_tokens=special)
    for name in ("token_ids", "position_ids", "labels", "step"):
        np.testing.assert_array_equal(getattr(layout, name), getattr(other, name))
    np.testing.assert_array_equal(layout.spans, other.spans)


def test_nothing_to_say_is_silence_throughout(tokenizer):
    ids, counts = encode(tokenizer, example())
    skip = find_decisions(tokenizer).skip
    assert counts == [1] * GRID[0]
    assert np.count_nonzero(ids == skip) == GRID[0]


def encode_all(tokenizer, one):
    special = SpecialTokens.from_tokenizer(tokenizer)
    how = {"question": "Wait.", "grid": GRID, "arrival_s": ARRIVALS, "merge_size": 2, "chat": DEFAULT_CHAT}
    return encode_questions(one, tokenizer, special, **how)


def test_questions_in_mid_video_are_answered_at_once_or_when_it_is_time(tokenizer):
    """One at a frame's own time comes behind it, with what is due then; one before the first frame, behind that."""
    questions = (
        Question("What is there?", 0.2, (Sentence("A dog.", 0.2),)),
        Question("When does it bark?", 3.0, (Sentence("Now.", 3.0), Sentence("Again.", 4.5))),
    )
    special, decisions = SpecialTokens.from_tokenizer(tokenizer), find_decisions(tokenizer)
    skip = decisions.skip

    def say(text):
        return [*tokenizer.encode(text), decisions.end]

    frame, prefix = SourceFrame(2, 2), special.prefix
    begun = encode_chat(tokenizer, question="Wait.", answer=None, video_grid_thw=GRID)
    prompt = SourceText(tuple(begun[: begun.tolist().index(special.video_pad)].tolist()), is_item=False)
    first, second = (encode_question(tokenizer, special, one.text) for one in questions)
    assert encode_all(tokenizer, example(questions=questions)) == (
        *(prompt, frame, Spoken((*prefix, skip)), first, Spoken((*prefix, *say("A dog.")))),
        *(frame, Spoken((skip,)), frame, Spoken((skip,)), second, Spoken((*prefix, *say("Now.")))),
        *(frame, Spoken((skip,)), frame, SourceText(special.trailer, is_item=False)),
        Spoken((*say("Again."), special.im_end, special.newline)),
    )


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([Question("Late?", 5.0)], "asked at 5 s, and the last frame arrives at 5 s"),
        ([Question("One?", 1.0, (Sentence("Much later.", 4.0),)), Question("Two?", 2.0)], "behind the next question"),
    ],
)
def test_questions_that_cannot_be_answered_are_refused(tokenizer, questions, message):
    with pytest.raises(ExampleError, match=message):
        encode_all(tokenizer, example(questions=tuple(questions)))


def test_later_turns_follow(tokenizer):
    ids, counts = encode(tokenizer, example(("One.", 1.0), later=(("And?", "No."),)))
    plain, _ = encode(tokenizer, example(("One.", 1.0)))
    np.testing.assert_array_equal(ids[: len(plain)], plain)
    assert "And?" in tokenizer.decode(ids[len(plain) :])
    assert len(counts) == GRID[0]


def test_what_cannot_decide_is_refused(tokenizer):
    with pytest.raises(ExampleError, match="has no times"):
        encode(tokenizer, example(caption="A dog."))
    with pytest.raises(ExampleError, match="written out"):
        encode(tokenizer, example(("A <skip> here.", 1.0)))
    with pytest.raises(TokenizerError, match="has no <skip> and no </think>: its model was not trained to decide"):
        find_decisions(load_tokenizer())


@pytest.mark.parametrize("kind", ["tokenizer.json", "decoder", "vocabulary"])
def test_added_tokens_are_in_the_files(tokenizer, tmp_path, kind):
    """As tokenizer.json, with added_tokens_decoder beside it, and as vocab.json with merges.txt."""
    copy_tokenizer(SHIPPED_TOKENIZER, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    if kind != "tokenizer.json":
        config["added_tokens_decoder"] = {
            str(token["id"]): {name: token[name] for name in token if name != "id"} for token in whole["added_tokens"]
        }
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if kind == "vocabulary":
        (tmp_path / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in whole["model"]["merges"]]
        (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
        (tmp_path / "tokenizer.json").unlink()
    before = shutil.copytree(tmp_path, tmp_path / "before")
    write_added_tokens(tmp_path, tokenizer, DECISION_TEXTS)
    read = load_tokenizer(tmp_path)
    assert find_decisions(read) == find_decisions(tokenizer)
    assert len(read) == len(tokenizer) == len(load_tokenizer(before)) + len(DECISION_TEXTS)
    assert read.encode("It hits a wall.") == tokenizer.encode("It hits a wall.")
    again = {file.name: file.read_bytes() for file in tmp_path.glob("*.json")}
    write_added_tokens(tmp_path, tokenizer, DECISION_TEXTS)
    assert again == {file.name: file.read_bytes() for file in tmp_path.glob("*.json")}
