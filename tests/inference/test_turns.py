"""Later turns, asked when the video has ended: streaming against one full pass over the layout that training has."""

from dataclasses import replace

import numpy as np
import pytest
from full_passes import QUESTION, ROW, forward, make_frames

from swjax.data.chat import encode_chat
from swjax.inference import (
    BatchEngine,
    Mode,
    QuestionSeen,
    Request,
    StreamEnded,
    StreamSession,
    StreamSettings,
    TokenSpoken,
    run_streams,
)
from swjax.streaming import KeySpans, SpecialTokens, Variant, build_layout, pad_layout

GRID = (4, 4)
LATER = ("What is red?", "And now?")
WORDS = 3


def settings_for(variant):
    return StreamSettings(variant=variant, wait_k=1, max_tail=WORDS)


def expected_words(model, tokenizer, frames, settings, answers, ends):
    """The words of all answers as one pass over the whole chat chooses them; `ends` are the tokens that ended them."""
    special = SpecialTokens.from_tokenizer(tokenizer)
    grid = np.array([(len(frames), *GRID)])
    chat = list(encode_chat(tokenizer, question=QUESTION, answer=None, video_grid_thw=grid[0]))
    firsts = []
    for number, answer in enumerate(answers):
        if number:
            turn = f"<|im_end|>\n<|im_start|>user\n{LATER[number - 1]}<|im_end|>\n<|im_start|>assistant\n"
            chat += tokenizer.encode(turn, add_special_tokens=False)
        firsts.append(len(chat))
        chat += answer
    layout = build_layout(
        np.array(chat), grid, variant=settings.variant, schedule=settings.wait_k, special_tokens=special
    )
    row = pad_layout(layout, ROW)
    ids = row.token_ids.copy()
    for index, end in zip(firsts[1:], ends, strict=True):  # whatever ended an answer, the model has read
        first = int(np.flatnonzero(np.array(chat[:index]) == special.im_end)[-2])
        ids[np.flatnonzero(row.chat_index == first)] = end
    scores = forward(
        model,
        ids[None],
        row.position_ids[:, None],
        KeySpans(row.spans.start[None], row.spans.stop[None]),
        pixel_values=np.concatenate([frame.patches for frame in frames])[None],
        video_grid_thw=grid[None],
    )
    order = np.arange(len(layout)) if settings.variant == "interleave" else layout.chat_index

    def chosen(index):
        of_word = order[layout.chat_index == index]
        return int(np.argmax(scores[0, int(np.flatnonzero(order == of_word - 1)[0])]))

    return [
        [chosen(first + place) for place in range(len(answer))] for first, answer in zip(firsts, answers, strict=True)
    ]


def words_by_question(events, questions=3):
    return [
        [event.token_id for event in events if isinstance(event, TokenSpoken) and event.question == number]
        for number in range(questions)
    ]


@pytest.mark.parametrize("variant", list(Variant))
def test_turns_after_the_video_equal_a_full_pass(model, tokenizer, variant):
    frames, settings = make_frames(3, 5, GRID), settings_for(variant)
    engine = BatchEngine(model, rows=2, frame_units=4, slots=256, chunk_sizes=(16,))
    alone = Request(QUESTION, frames, settings)
    modes = [mode for mode in Mode if mode.allows(Variant(variant))]
    requests = [alone, *(replace(alone, mode=mode, later=LATER) for mode in modes)]
    events = [[] for _ in requests]
    for number, _, event in run_streams(engine, tokenizer, requests):
        events[number].append(event)

    for mode, told in zip(modes, events[1:], strict=True):
        answers = words_by_question(told)
        assert [event.index for event in told if isinstance(event, QuestionSeen)] == [1, 2]
        assert isinstance(told[-1], StreamEnded)
        assert told[-1].reason == "token_limit"
        assert answers[0] == words_by_question(events[0])[0] or mode is Mode.OFFLINE
        assert all(len(answer) >= WORDS for answer in answers)
        waits = settings if mode is not Mode.OFFLINE else replace(settings, counts=(0, 0, 0))
        if mode is not Mode.OFFLINE or not waits.design.speaks_while_watching:
            end = SpecialTokens.from_tokenizer(tokenizer).im_end
            assert answers == expected_words(model, tokenizer, frames, settings, answers, [end, end])


@pytest.mark.parametrize("variant", ["gdpe", "interleave", "batch"])
def test_a_turn_follows_an_answer_that_has_ended_by_itself(model, tokenizer, variant):
    frames = make_frames(3, 11, GRID)
    engine = BatchEngine(model, rows=1, frame_units=4, slots=256, chunk_sizes=(16,))

    def watch(settings):
        request = Request(QUESTION, frames, settings, later=LATER)
        return [event for _, _, event in run_streams(engine, tokenizer, [request])]

    spoken = words_by_question(watch(settings_for(variant)))
    end = next(word for word in reversed(spoken[0]) if spoken[0].index(word) > 1)  # behind the last frame
    settings = replace(settings_for(variant), stop_tokens=(end,))
    answers = words_by_question(watch(settings))
    assert answers[0] == spoken[0][: spoken[0].index(end)]
    at_limit = SpecialTokens.from_tokenizer(tokenizer).im_end
    ends = [end, end if len(answers[1]) < WORDS else at_limit]
    assert answers == expected_words(model, tokenizer, frames, settings, answers, ends)


def test_a_session_is_asked_after_the_video(weights, tokenizer):
    settings = settings_for("gdpe")
    session = StreamSession(weights, tokenizer, question=QUESTION, settings=settings)
    for frame in make_frames(3, 11, GRID):
        session.see(frame)
        said = [event.token_id for event in session.speak(1)]
    session.finish()
    with pytest.raises(ValueError, match="an answer is under way; speak until it has ended, or interrupt it"):
        session.ask(LATER[0])
    assert session.ask(LATER[0], interrupt=True).index == 1
    first = [event.token_id for event in session.speak(2)]
    session.ask(LATER[1], interrupt=True)
    second = [(event.token_id, event.question, event.after_frame) for event in session.speak(2)]
    assert session.answer[-5:] == [*said, *first, *(token for token, _, _ in second)]
    assert [where for _, *where in second] == [[2, 2], [2, 2]]
