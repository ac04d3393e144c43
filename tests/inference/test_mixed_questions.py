"""Questions about images, several videos and nothing: streaming against one full pass over training's layout."""

import itertools

import numpy as np
import pytest
from full_passes import ROW, forward, make_frames

from swjax.data.chat import encode_mixed
from swjax.data.example import IMAGE_TAG, VIDEO_TAG
from swjax.inference import (
    BatchEngine,
    Frame,
    Request,
    StreamSession,
    StreamSettings,
    TokenSpoken,
    run_streams,
)
from swjax.inference.memory import memory_of
from swjax.streaming import KeySpans, SpecialTokens, Variant, build_layout, pad_layout

WORDS = 3
FILMS = (make_frames(3, seed=0), make_frames(2, seed=1))
IMAGE = make_frames(1, seed=2)[0]
QUESTIONS = {
    "two videos and an image": ([IMAGE, "Which is red?", VIDEO_TAG, VIDEO_TAG], FILMS),
    "an image between": (["This?", VIDEO_TAG, "Or this: ", IMAGE, "?"], FILMS[:1]),
    "images": (["Is it ", IMAGE, " or ", IMAGE, "?"], ()),
    "text alone": (["Who moves?"], ()),
}


def expected_words(model, tokenizer, turns, films, settings):
    """The words of the last answer as one pass over the whole chat, its questions and answers, chooses them."""
    special = SpecialTokens.from_tokenizer(tokenizer)
    texts = ["".join(IMAGE_TAG if isinstance(part, Frame) else part for part in question) for question, _ in turns]
    waiting = iter(films)
    shown_parts = [part for question, _ in turns for part in question if isinstance(part, Frame) or part == VIDEO_TAG]
    media = [[part] if isinstance(part, Frame) else next(waiting) for part in shown_parts]
    grids = np.array([(len(frames), *frames[0].grid_hw) for frames in media], np.int64).reshape(-1, 3)
    is_image = np.array([isinstance(part, Frame) for part in shown_parts])
    # The answers are ids, which need not be those of their own text.
    chat = encode_mixed(tokenizer, [*((text, "A") for text in texts[:-1]), (texts[-1], None)], grid_thw=grids.tolist())
    opens = np.flatnonzero((chat[:-1] == special.im_start) & (chat[1:] == special.assistant))
    cuts = [0, *(int(start) + len(special.prefix) for start in opens)]
    pieces = [chat[start + bool(start) : stop] for start, stop in itertools.pairwise(cuts)]
    begun = np.concatenate([*itertools.chain(*zip(pieces, (said for _, said in turns[:-1]), strict=False)), pieces[-1]])
    answer = turns[-1][1]
    layout = build_layout(
        np.concatenate([begun, answer]).astype(np.int32),
        grids[~is_image] if len(grids) else grids,
        image_grid_thw=grids[is_image] if len(grids) else None,
        variant=settings.variant,
        schedule=settings.wait_k,
        special_tokens=special,
    )
    row = pad_layout(layout, ROW)
    pixels = np.zeros((1, 192, IMAGE.patches.shape[1]), np.uint8)
    shown = [frame.patches for frames in media for frame in frames]
    if shown:
        pixels[0, : sum(map(len, shown))] = np.concatenate(shown)
    scores = forward(
        model,
        row.token_ids[None],
        row.position_ids[:, None],
        KeySpans(row.spans.start[None], row.spans.stop[None]),
        pixel_values=pixels,
        video_grid_thw=np.concatenate([grids, np.zeros((4 - len(grids), 3), np.int64)])[None].astype(np.int32),
    )
    order = np.arange(len(layout)) if settings.variant == "interleave" else layout.chat_index

    def chosen(index):
        of_word = order[layout.chat_index == index]
        return int(np.argmax(scores[0, int(np.flatnonzero(order == of_word - 1)[0])]))

    return [chosen(len(begun) + place) for place in range(len(answer))]


@pytest.mark.parametrize("variant", [Variant.GDPE, Variant.OSPE, Variant.INTERLEAVE, Variant.OFFLINE])
def test_words_are_those_of_one_pass_over_the_chat(model, weights, tokenizer, variant):
    settings = StreamSettings(variant=variant, wait_k=1, max_tail=WORDS)
    engine = BatchEngine(weights, rows=2, frame_units=6, grow_ahead=False)
    requests = [
        Request(question, films[0] if films else (), settings, others=films[1:])
        for question, films in QUESTIONS.values()
    ]
    said = [[] for _ in requests]
    for number, _, event in run_streams(engine, tokenizer, requests):
        if isinstance(event, TokenSpoken):
            said[number].append(event.token_id)
    for answer, (question, films) in zip(said, QUESTIONS.values(), strict=True):
        frames = sum(map(len, films))
        assert len(answer) == WORDS + max(0, frames - 1) * (variant != Variant.OFFLINE)
        assert answer == expected_words(model, tokenizer, [(question, answer)], films, settings)
    if variant == Variant.GDPE:
        for answer, (question, films) in zip(said, QUESTIONS.values(), strict=True):
            session = StreamSession(weights, tokenizer, question=question, settings=settings)
            words = [event.token_id for event in session.run(*films) if isinstance(event, TokenSpoken)]
            assert words == answer


LATER = (["And ", IMAGE, " or ", make_frames(1, seed=3)[0], "?"], ["Which was red?"])


@pytest.mark.parametrize("variant", [Variant.GDPE, Variant.OSPE, Variant.INTERLEAVE, Variant.OFFLINE])
def test_later_turns_show_images(model, weights, tokenizer, variant):
    settings = StreamSettings(variant=variant, wait_k=1, max_tail=WORDS)
    engine = BatchEngine(weights, rows=2, frame_units=6, grow_ahead=False)
    asked = [QUESTIONS["an image between"], QUESTIONS["images"]]
    requests = [Request(question, films[0] if films else (), settings, later=LATER) for question, films in asked]
    said = [[[], [], []] for _ in requests]
    for number, _, event in run_streams(engine, tokenizer, requests):
        if isinstance(event, TokenSpoken):
            said[number][event.question].append(event.token_id)
    for answers, (question, films) in zip(said, asked, strict=True):
        assert [len(answer) for answer in answers[1:]] == [WORDS, WORDS]
        for turn in (1, 2):
            turns = [*zip((question, *LATER), answers, strict=True)][: turn + 1]
            assert answers[turn] == expected_words(model, tokenizer, turns, films, settings)


def test_the_system_prompt_is_read(weights, tokenizer):
    def tokens(system):
        session = StreamSession(weights, tokenizer, question=["Who?"], system=system)
        return session.tokens_computed

    longer = len(tokenizer.encode("Be short. Be kind.")) - len(tokenizer.encode("Be short."))
    assert tokens("Be short. Be kind.") - tokens("Be short.") == longer > 0


def test_what_cannot_be_asked_is_named(weights, tokenizer):
    with pytest.raises(ValueError, match=r"a question is text, or texts, images \(make_frame\) and '<video>'"):
        StreamSession(weights, tokenizer, question=["What?", 3])
    settings = StreamSettings(memory=memory_of("window"))
    with pytest.raises(ValueError, match="need memory keep_all"):
        StreamSession(weights, tokenizer, question=["What?"], settings=settings)
    session = StreamSession(weights, tokenizer, question=["Which?", VIDEO_TAG, VIDEO_TAG])
    session.see(FILMS[0][0])
    with pytest.raises(ValueError, match="about 1 more videos; hand over their frames"):
        session.finish()
    with pytest.raises(ValueError, match="a question between frames must be text, got list; show images before"):
        session.ask([IMAGE, "What?"])
    session = StreamSession(weights, tokenizer, question=["Who?"])
    with pytest.raises(ValueError, match="a question after the video shows another video; open a stream"):
        session.ask(["And?", VIDEO_TAG], interrupt=True)
    with pytest.raises(ValueError, match=r"a question is text, or texts, images \(make_frame\)"):
        session.ask([])
