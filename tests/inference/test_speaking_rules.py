"""Rules of speaking in the engine: what is said after each frame, against one full pass over the layout it makes."""

from dataclasses import replace

import numpy as np
import pytest
from full_passes import QUESTION, ROW, forward, make_frames

from swjax.data.between_frames import encode_question
from swjax.data.chat import encode_chat
from swjax.inference import (
    BatchEngine,
    FrameSeen,
    Mode,
    QuestionSeen,
    Request,
    StreamEnded,
    StreamSession,
    StreamSettings,
    TokenSpoken,
)
from swjax.inference.feed import run_streams
from swjax.inference.prompt import encode_prompt
from swjax.streaming import (
    DecisionTokens,
    KeySpans,
    SourceFrame,
    SourceText,
    SpecialTokens,
    Spoken,
    Variant,
    build_conversation,
    build_layout,
    pad_layout,
    read_events,
    speaking_of,
)
from swjax.streaming.speaking import skip_is_unwanted

GRID = (4, 4)
FRAMES = 6
SPEAKING = [variant for variant in Variant if Mode.SEQUENTIAL.allows(variant) or Mode.INTERLEAVED.allows(variant)]


def told(events):
    return [event for event in events if isinstance(event, TokenSpoken)]


def watch(engine, tokenizer, requests):
    events = [[] for _ in requests]
    for number, _, event in run_streams(engine, tokenizer, requests):
        events[number].append(event)
    return events


def counts_of(events):
    return np.bincount([event.after_frame for event in told(events)], minlength=FRAMES).tolist()


def scores_of(model, tokenizer, frames, settings, events):
    """The scores by which each token was chosen, as one pass over the layout of all of them gives them."""
    special = SpecialTokens.from_tokenizer(tokenizer)
    grid = np.array([(len(frames), *GRID)])
    prompt = encode_chat(tokenizer, question=QUESTION, answer=None, video_grid_thw=grid[0])
    tokens = [event.token_id for event in told(events)]
    layout = build_layout(
        np.array([*prompt, *tokens]),
        grid,
        variant=settings.variant,
        schedule=counts_of(events),
        special_tokens=special,
    )
    row = pad_layout(layout, ROW)
    scores = forward(
        model,
        row.token_ids[None],
        row.position_ids[:, None],
        KeySpans(row.spans.start[None], row.spans.stop[None]),
        pixel_values=np.concatenate([frame.patches for frame in frames])[None],
        video_grid_thw=grid[None],
    )[0]
    order = np.arange(len(layout)) if settings.variant == "interleave" else layout.chat_index
    words = [order[layout.chat_index == len(prompt) + place] for place in range(len(tokens))]
    return np.asarray(scores)[[int(np.flatnonzero(order == word - 1)[0]) for word in words]]


class Foresight:
    """A rule that needs what nobody measures."""

    needs = frozenset({"what_comes"})

    def speaks(self, moment):
        return moment.words < 1


UNSAID = DecisionTokens(-2, -2)


def choose_decisions(model, tokenizer, variant, seed=8):
    """Tokens that the random model says: the third, so that an utterance ends, and then what comes after frame 1."""
    engine, frames = make_engine(model), make_frames(FRAMES, seed, GRID)
    settings = StreamSettings(variant=variant, max_tail=4, speaking_rule=speaking_of("decide:most=5"), decisions=UNSAID)
    for _ in range(2):
        (events,) = watch(engine, tokenizer, [Request(QUESTION, frames, settings)])
        said = [(event.token_id, event.after_frame) for event in told(events)]
        if settings.decisions == UNSAID:
            settings = replace(settings, decisions=DecisionTokens(-2, said[2][0]))
    skip = next(token for token, frame in said if frame == 1)
    return DecisionTokens(skip, settings.decisions.end)


@pytest.fixture(scope="module")
def decisions(model, tokenizer):
    return choose_decisions(model, tokenizer, "gdpe")


def make_engine(model, **more):
    return BatchEngine(model, rows=2, frame_units=4, slots=256, chunk_sizes=(16,), **more)


@pytest.mark.parametrize("variant", SPEAKING)
def test_words_after_each_frame_are_those_that_the_rule_lets_the_model_say(model, tokenizer, variant):
    decisions = choose_decisions(model, tokenizer, variant)
    frames = make_frames(FRAMES, 8, GRID)
    settings = StreamSettings(variant=variant, max_tail=4, decisions=decisions)
    rules = ("decide:most=5", "decide:threshold=0.5,most=5", "always:most=5", "timer:period=2,most=5", "never")
    requests = [Request(QUESTION, frames, replace(settings, speaking_rule=speaking_of(rule))) for rule in rules]
    found = watch(make_engine(model), tokenizer, requests)
    for request, events in zip(requests, found, strict=True):
        check(model, tokenizer, frames, request.settings, events)
    by_rule = dict(zip(rules, map(counts_of, found), strict=True))
    assert by_rule["never"] == [0] * FRAMES
    assert all(sum(by_rule[rule]) for rule in rules[2:4])
    said = [event.token_id for events in found[:2] for event in told(events)]
    assert {decisions.skip, decisions.end} <= set(said)

    modes = [mode for mode in Mode if mode.allows(variant) and mode is not Mode.OFFLINE]
    again = watch(make_engine(model), tokenizer, [replace(requests[1], mode=mode) for mode in modes])
    assert all(told_of(events) == told_of(found[1]) for events in again)
    for request, events in zip(requests[:2], found[:2], strict=True):
        last = [event for event in told(events) if event.after_frame == FRAMES - 1]
        pausing = replace(decisions, end=last[0].token_id)  # which ends what is said after the last frame, not all
        settings = replace(request.settings, decisions=pausing)
        (batched,) = watch(make_engine(model), tokenizer, [replace(request, settings=settings)])
        session = StreamSession(model, tokenizer, question=QUESTION, settings=settings)
        assert told_of(session.run(frames)) == told_of(batched)


def told_of(events):
    return [(event.token_id, event.text, event.after_frame) for event in told(events)]


def check(model, tokenizer, frames, settings, events):
    """Every token is the likeliest that the rule allows, and each frame has as many as it allows."""
    tokens, scores = [event.token_id for event in told(events)], None
    skip, end = settings.decisions.skip, settings.decisions.end
    scores = scores_of(model, tokenizer, frames, settings, events) if tokens else []
    in_utterance, place = False, 0
    threshold = getattr(settings.speaking_rule, "threshold", np.inf)
    most = getattr(settings.speaking_rule, "most", 0)
    period = getattr(settings.speaking_rule, "period", 1)
    for frame, count in enumerate(counts_of(events)):
        said = tokens[place : place + count]
        if not in_utterance and frame % period:
            assert not said
            continue
        for number, token in enumerate(said):
            row = scores[place + number][None]
            first = number == 0 and not in_utterance
            unwanted = skip_is_unwanted(row, np.array([skip]), np.array([threshold if first else 0.0]), xp=np)
            assert token == int(np.where(unwanted, -np.inf, row).argmax())
            in_utterance = token not in (skip, end)
            if frame < len(frames) - 1:
                assert in_utterance or number == count - 1, "nothing follows the end of an utterance"
        if frame < len(frames) - 1 and most:
            assert count == most or not in_utterance
        place += count
    assert isinstance(events[-1], StreamEnded)


def test_utterances_are_parted_and_decisions_have_no_text(model, tokenizer, decisions):
    settings = StreamSettings(max_tail=4, decisions=decisions, speaking_rule=speaking_of("decide:threshold=0.5,most=5"))
    (events,) = watch(make_engine(model), tokenizer, [Request(QUESTION, make_frames(FRAMES, 8, GRID), settings)])
    words = told(events)
    pauses = [place for place, word in enumerate(words) if word.token_id in (decisions.skip, decisions.end)]
    assert pauses
    assert all(words[place].text == "" for place in pauses)
    behind = [words[place + 1] for place in pauses if place + 1 < len(words) and place + 1 not in pauses and place]
    assert behind
    assert all(word.text.startswith(" ") for word in behind if word.text)


def test_decisions_are_no_repetition(model, tokenizer, decisions):
    """However dear repeating is, silence costs nothing: the penalty of one would forbid every second skip."""
    from swjax.inference import Sampling

    plain = StreamSettings(max_tail=4, decisions=decisions, speaking_rule=speaking_of("decide:most=1"))
    frames = make_frames(FRAMES, 8, GRID)
    same = DecisionTokens(decisions.skip, decisions.skip)
    requests = [
        Request(QUESTION, frames, replace(plain, decisions=same, sampling=Sampling(repetition_penalty=penalty)))
        for penalty in (1.0, 1e6)
    ]
    without, with_penalty = (
        [event.token_id for event in told(events)] for events in watch(make_engine(model), tokenizer, requests)
    )
    said = [token for token in with_penalty if token != same.skip]
    assert len(said) == len(set(said)), "words are repeated at no price"
    first = next((place for place, token in enumerate(without) if token == same.skip), None)
    assert first is None or with_penalty[: first + 1] == without[: first + 1] or len(set(without)) < len(without)


@pytest.mark.parametrize(("variant", "seed"), [("interleave", 21), ("ospe", 21), ("gdpe", 12), ("gipe", 21)])
def test_a_question_in_mid_stream_begins_another_answer_that_decides(model, tokenizer, variant, seed):
    """Every token is the likeliest by one pass over the conversation, and what was begun is finished before.

    With these seeds no token is said that gives a chat its structure.
    """
    special, decisions = SpecialTokens.from_tokenizer(tokenizer), choose_decisions(model, tokenizer, variant, seed=seed)
    settings = StreamSettings(
        variant=variant, max_tail=3, decisions=decisions, speaking_rule=speaking_of("decide:threshold=0.1,most=4")
    )
    engine, frames = make_engine(model), make_frames(FRAMES, seed, GRID)
    stream = engine.open(tokenizer, question=QUESTION, settings=settings)
    told_events = []
    for number, frame in enumerate(frames):
        engine.see(stream, frame, last=number == FRAMES - 1)
        if number in (1, 3):
            engine.ask(stream, "And now?")
    while engine.has_work:
        told_events += [event for _, event in engine.step()]

    events = [SourceText(tuple(encode_prompt(tokenizer, special, QUESTION).tolist()), is_item=False)]
    first, tokens, asked = False, [], 0
    for event in told_events:
        match event:
            case FrameSeen(index=index):
                events.append(SourceFrame(2, 2))
                if index == FRAMES - 1:
                    events.append(SourceText(special.trailer, is_item=False))
                if index == 0:
                    events.append(Spoken(special.prefix))
                first = not tokens or tokens[-1][0] in (decisions.skip, decisions.end)
            case QuestionSeen():
                asked += 1
                events += [encode_question(tokenizer, special, "And now?"), Spoken(special.prefix)]
                first = True
            case TokenSpoken(token_id=token, question=question):
                events.append(Spoken((token,)))
                assert question == asked
                tokens.append((token, first))
                first = False
    assert asked == 2
    layout = pad_layout(build_conversation(events, variant=variant, special_tokens=special), ROW)
    grid = read_events(events, special).video_grid_thw
    scores = np.asarray(
        forward(
            model,
            layout.token_ids[None],
            layout.position_ids[:, None],
            KeySpans(layout.spans.start[None], layout.spans.stop[None]),
            pixel_values=np.concatenate([frame.patches for frame in frames])[None],
            video_grid_thw=grid[None],
        )
    )[0]
    line = read_events(events, special).token_ids
    sources = read_events(events, special).num_sources
    spoken = [number for number, event in enumerate(flat(events)) if event]
    assert [int(line[sources + place]) for place in spoken] == [token for token, _ in tokens]
    for place, (token, decides) in zip(spoken, tokens, strict=True):
        (slot,) = np.flatnonzero(layout.chat_index == sources + place)
        row = scores[slot + 1 if settings.design.grouped else slot - 1][None]
        unwanted = skip_is_unwanted(row, np.array([decisions.skip]), np.array([0.1 if decides else 0.0]), xp=np)
        assert token == int(np.where(unwanted, -np.inf, row).argmax())


def flat(events):
    """Whether each target is a word, and not of a prefix."""
    return [len(event.token_ids) == 1 for event in events if isinstance(event, Spoken) for _ in event.token_ids]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speaking_rule": Foresight()}, "needs what_comes, which the engine does not measure"),
        ({"speaking_rule": speaking_of("always:most=100000")}, "allows more than 10000 words"),
        ({"speaking_rule": speaking_of("decide"), "counts": (1,)}, "in the place of a schedule|takes the place"),
        ({"speaking_rule": speaking_of("decide"), "variant": "offline"}, "speak while they watch"),
        ({"speaking_rule": "decide"}, "must be a rule"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        StreamSettings(**changes)


@pytest.mark.parametrize("variant", ["gdpe", "interleave"])
def test_the_drop_trigger_speaks_of_frames_that_are_new(model, tokenizer, variant):
    """Two frames shown again and again: it speaks of the first, of each change, and of nothing that stays."""
    first, second = make_frames(2, 8, GRID)
    shown = [first, first, second, second, second, first]
    frames = [replace(frame, video_s=number + 0.5) for number, frame in enumerate(shown)]
    settings = StreamSettings(
        variant=variant, max_tail=2, speaking_rule=speaking_of("drop_trigger:most=2"), decisions=UNSAID
    )
    (events,) = watch(make_engine(model), tokenizer, [Request(QUESTION, frames, settings)])
    # Nothing ends an utterance here, so what was begun goes on for as many words an item.
    assert counts_of(events)[0] == 2
    ended = replace(settings, decisions=DecisionTokens(-2, told(events)[1].token_id))
    (events,) = watch(make_engine(model), tokenizer, [Request(QUESTION, frames, ended)])
    counts = counts_of(events)
    assert (counts[0], counts[1]) == (2, 0)
    assert counts[2] > 0
    session = StreamSession(model, tokenizer, question=QUESTION, settings=ended)
    assert told_of(session.run(frames)) == told_of(events)
