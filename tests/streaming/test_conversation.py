"""Text between the frames and several answers, in every position design, against what the events themselves say."""

import functools
from dataclasses import dataclass, field

import jax
import numpy as np
import pytest
from chats import SPECIAL, Chat, Item, Turn
from hypothesis import given, settings
from hypothesis import strategies as st

from swjax.streaming import (
    DESIGNS,
    Answer,
    SourceFrame,
    SourceText,
    Spoken,
    Storage,
    StoredCounts,
    Variant,
    build_conversation,
    build_layout,
    device,
    first_positions,
    number_items,
    pack_layouts,
    pad_layout,
    place_frame,
    place_text,
    place_words,
    read_events,
    reveal,
    schedule_answers,
    store_sources,
    store_targets,
    unpack_layouts,
)

VARIANTS = st.sampled_from(list(Variant))
FIELDS = ("token_ids", "position_ids", "labels", "chat_index", "step", "is_target")
ROOM, PIECES = 256, 12


@dataclass
class Step:
    """A source item: what arrives with it, and what is spoken after it."""

    sources: list
    spoken: list[int] = field(default_factory=list)

    @property
    def events(self):
        return [*self.sources, *([Spoken(tuple(self.spoken))] if self.spoken else [])]


@st.composite
def talks(draw):
    """A conversation item by item: frames and texts in any order, and answers of any length cut anywhere."""
    size = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    prompt = SourceText((SPECIAL.im_start, *range(900, 900 + draw(st.integers(0, 3)))), is_item=False)
    items, word = [], 2000
    for number in range(draw(st.integers(1, 7))):
        if draw(st.booleans()):
            item = Step([SourceFrame(*size)])
        else:
            text = (SPECIAL.vision_end, *range(1000, 1000 + draw(st.integers(1, 5))), SPECIAL.vision_start)
            item = Step([SourceText(text)])
            size = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        items.append(item if number else Step([prompt, *item.sources]))
    if draw(st.booleans()):
        items[-1].sources.append(SourceText(SPECIAL.trailer, is_item=False))
    line = []
    for _ in range(draw(st.integers(0, 3))):
        length = draw(st.integers(0, 6))
        line += [*SPECIAL.prefix, *range(word, word + length)]
        line += [SPECIAL.im_end, SPECIAL.newline] if draw(st.booleans()) else []
        word += length
    cuts = sorted(draw(st.integers(0, len(line))) for _ in items[1:])
    for item, first, stop in zip(items, [0, *cuts], [*cuts, len(line)], strict=True):
        item.spoken = line[first:stop]
    return items


def events_of(items):
    return [event for item in items for event in item.events]


def lay_out(items, variant, **arguments):
    return build_conversation(events_of(items), variant=variant, special_tokens=SPECIAL, **arguments)


def in_line_order(layout, values):
    ordered = np.empty_like(values)
    ordered[..., layout.chat_index] = values
    return ordered


def mask_in_line_order(layout):
    mask = np.zeros((len(layout), len(layout)), bool)
    mask[np.ix_(layout.chat_index, layout.chat_index)] = layout.spans.to_mask(len(layout))
    return mask


def tokens_in_line_order(events):
    """(number of its event, whether it is a target) of each token, sources before targets."""
    sizes = [event.rows * event.columns if isinstance(event, SourceFrame) else len(event.token_ids) for event in events]
    tokens = [(number, isinstance(event, Spoken)) for number, event in enumerate(events) for _ in range(sizes[number])]
    return sorted(tokens, key=lambda token: token[1])


def expected_mask(events, design):
    """By asking of every pair of tokens whether the one has arrived when the other is stored."""
    tokens = tokens_in_line_order(events)
    length = len(tokens)

    def sees(query: int, key: int) -> bool:
        (asked, is_target), (happened, key_is_target) = tokens[query], tokens[key]
        match design.storage:
            case Storage.CHAT:
                return key <= query
            case Storage.ARRIVAL:
                return (happened, key) <= (asked, query)
            case Storage.GROUPED:
                if is_target == key_is_target:
                    return key <= query
                successor = tokens[query + 1][0] if query + 1 < length else asked
                return is_target and happened < successor

    return np.array([[sees(query, key) for key in range(length)] for query in range(length)]).reshape(length, length)


@settings(max_examples=150, deadline=None)
@given(talks(), VARIANTS)
def test_who_sees_whom(items, variant):
    events, layout = events_of(items), lay_out(items, variant)
    conversation = read_events(events, SPECIAL)
    np.testing.assert_array_equal(layout.token_ids, conversation.token_ids[layout.chat_index])
    np.testing.assert_array_equal(mask_in_line_order(layout), expected_mask(events, DESIGNS[variant]))
    if DESIGNS[variant].storage is Storage.ARRIVAL:
        happened = [tokens_in_line_order(events)[index][0] for index in layout.chat_index]
        assert happened == sorted(happened)


@settings(max_examples=150, deadline=None)
@given(talks(), VARIANTS, st.sampled_from([0, 7, 10_000]), st.sampled_from([0.4, 1.0, 1.5]))
def test_ids(items, variant, gap, seconds):
    """Two counts: Qwen2.5-VL's ids of the sources alone, and words that count on. One: in order. OSPE: overlapped."""
    layout = lay_out(items, variant, gap=gap, second_per_grid_t=seconds)
    found = in_line_order(layout, layout.position_ids)
    conversation, sources = read_events(events_of(items), SPECIAL), []
    by_qwen = build_layout(
        conversation.token_ids,
        conversation.video_grid_thw,
        variant="offline",
        second_per_grid_t=seconds,
        special_tokens=SPECIAL,
    ).position_ids
    stop = conversation.num_sources
    if variant == "offline":
        np.testing.assert_array_equal(found, by_qwen)
        return
    if variant not in ("interleave", "ospe"):
        np.testing.assert_array_equal(found[:, :stop], by_qwen[:, :stop])
        words = np.arange(found.shape[1] - stop) + (gap if variant == "gipe" else 0)
        np.testing.assert_array_equal(found[:, stop:], np.broadcast_to(words, (3, len(words))))
        return
    targets, start, words_end = [], 0, 0
    for item in items:
        at = start
        for source in item.sources:
            if isinstance(source, SourceFrame):
                sources += [(at, at + row, at + column) for row, column in np.ndindex(source.rows, source.columns)]
                at += max(source.rows, source.columns)
            else:
                sources += [(at + number,) * 3 for number in range(len(source.token_ids))]
                at += len(source.token_ids)
        first = at if variant == "interleave" else max(at, words_end)
        words_end = first + len(item.spoken)
        targets += [(first + number,) * 3 for number in range(len(item.spoken))]
        start = words_end if variant == "interleave" else first
    np.testing.assert_array_equal(found.T, np.array(sources + targets).reshape(-1, 3))


@settings(max_examples=100, deadline=None)
@given(talks(), VARIANTS)
def test_words_and_ends_are_predicted_by_what_stands_before_them(items, variant):
    layout = lay_out(items, variant)
    line = [token for item in items for token in item.spoken]
    sources = len(layout) - len(line)
    labelled, inside = {}, False
    for number, token in enumerate(line):
        if line[max(0, number - 2) : number + 1] == list(SPECIAL.prefix):
            inside = True
        elif token == SPECIAL.im_start:
            inside = False
        elif inside:
            labelled[sources + number] = token
            inside = token != SPECIAL.im_end
    expected = {}
    for slot, index in enumerate(layout.chat_index):
        by_arrival = DESIGNS[variant].storage is Storage.ARRIVAL
        after = layout.chat_index[slot + 1] if by_arrival and slot + 1 < len(layout) else index + 1
        if after in labelled:
            expected[slot] = labelled[after]
    assert {slot: label for slot, label in enumerate(layout.labels.tolist()) if label >= 0} == expected
    assert len(expected) == len(labelled)


def grow(items, variant, *, gap, stride, functions):
    """Go through a conversation event by event; gives ids and what each token sees, in line order."""
    design, events = DESIGNS[Variant(variant)], events_of(items)
    order = tokens_in_line_order(events)
    cells = {number: [i for i, (event, _) in enumerate(order) if event == number] for number in range(len(events))}
    positions = np.zeros((3, len(order)), np.int32)
    slots, spans = np.zeros(len(order), int), np.zeros((len(order), 2), int)
    counts, stored = first_positions(design, gap), StoredCounts(0, 0)
    in_piece, waiting = 0, []
    if not design.speaks_while_watching:
        cells = dict(sorted(cells.items(), key=lambda cell: isinstance(events[cell[0]], Spoken)))

    def store(kind, indices):
        nonlocal stored
        stored, here, seen = functions[kind](design, stored, len(indices))
        slots[indices], spans[indices] = here, np.stack([seen.start, seen.stop], axis=1)

    for number, indices in cells.items():
        match events[number]:
            case SourceText(is_item=is_item):
                counts, placed = functions["place_text"](design, counts, len(indices), is_item=is_item)
                in_piece = 0
            case SourceFrame(rows, columns):
                counts, placed = functions["place_frame"](design, counts, in_piece, rows, columns, stride)
                in_piece += 1
            case Spoken():
                for index in indices:
                    if waiting:
                        store("store_targets", waiting)
                    counts, positions[:, [index]] = functions["place_words"](design, counts, 1)
                    waiting = [index]
                if waiting and (design.storage is Storage.ARRIVAL or waiting[0] == len(order) - 1):
                    store("store_targets", waiting)
                    waiting = []
                continue
        positions[:, indices] = placed
        store("store_sources", indices)
    seen = (slots[None] >= spans[:, :1]) & (slots[None] < spans[:, 1:])
    return positions, seen


GROWTH = (place_text, place_frame, place_words, store_sources, store_targets)
NUMPY = {function.__name__: function for function in GROWTH}


@settings(max_examples=200, deadline=None)
@given(talks(), VARIANTS, st.sampled_from([0, 7, 10_000]), st.sampled_from([0.4, 1.0, 1.5, 2 / 3]))
def test_a_conversation_grown_event_by_event_is_the_layout_of_training(items, variant, gap, seconds):
    layout = lay_out(items, variant, gap=gap, second_per_grid_t=seconds)
    positions, seen = grow(items, variant, gap=gap, stride=seconds * 2.0, functions=NUMPY)
    np.testing.assert_array_equal(in_line_order(layout, layout.position_ids), positions)
    np.testing.assert_array_equal(mask_in_line_order(layout), seen)


@settings(max_examples=100, deadline=None)
@given(talks(), st.sampled_from(["ospe", "gdpe", "gipe"]), st.sampled_from([0, 7]))
def test_an_item_may_be_laid_out_while_words_are_spoken_about_the_one_before(items, variant, gap):
    design = DESIGNS[variant]
    layout = lay_out(items, variant, gap=gap, second_per_grid_t=0.75)
    sources, targets, piece = [], [], 0

    def lay(counts, item):
        nonlocal piece
        for source in item.sources:
            if isinstance(source, SourceText):
                length = len(source.token_ids)
                counts, placed = place_text(design, counts, length, is_item=source.is_item)
                piece = 0
            else:
                counts, placed = place_frame(design, counts, piece, source.rows, source.columns, 1.5)
                piece += 1
            sources.append(placed)
        return counts

    spoken = lay(first_positions(design, gap), items[0])
    for item, following in zip(items, [*items[1:], None], strict=True):
        ahead = lay(spoken, following) if following else spoken
        for _ in item.spoken:
            spoken, placed = place_words(design, spoken, 1)
            targets.append(placed)
        spoken = reveal(design, spoken, ahead)
    np.testing.assert_array_equal(
        in_line_order(layout, layout.position_ids), np.concatenate([*sources, *targets], axis=1)
    )


@settings(max_examples=60, deadline=None)
@given(talks(), st.sampled_from(["interleave", "ospe", "gdpe", "gipe"]), st.data())
def test_the_past_does_not_depend_on_the_future(items, variant, data):
    """What has been stored has the same ids, and sees the same, whatever is asked or shown later."""
    events = events_of(items)
    cut = data.draw(st.integers(1, len(events)))
    whole, early = (
        build_conversation(some, variant=variant, special_tokens=SPECIAL) for some in (events, events[:cut])
    )
    happened = np.array([number for number, _ in tokens_in_line_order(events)])
    kept = np.flatnonzero(happened < cut)
    settled = kept[:-1] if tokens_in_line_order(events[:cut])[-1][1] else kept  # the last word waits for its successor
    np.testing.assert_array_equal(
        in_line_order(whole, whole.position_ids)[:, kept], in_line_order(early, early.position_ids)
    )
    np.testing.assert_array_equal(
        mask_in_line_order(whole)[settled][:, kept], mask_in_line_order(early)[: len(settled)]
    )
    later = np.flatnonzero(happened >= cut)
    assert not mask_in_line_order(whole)[settled][:, later].any()


@functools.partial(jax.jit, static_argnames="variant")
def on_device(ids, step, grid, num_tokens, num_sources, gap, seconds, *, variant):
    return device.build_conversation(
        ids,
        step,
        grid,
        num_tokens=num_tokens,
        num_sources=num_sources,
        variant=variant,
        gap=gap,
        second_per_grid_t=seconds,
        special_tokens=SPECIAL,
    )


@settings(max_examples=30, deadline=None)
@given(
    talks(),
    st.sampled_from(["offline", "interleave", "ospe", "gipe"]),
    st.sampled_from([0, 10_000]),
    st.sampled_from([1.0, 2 / 3]),
)
def test_inside_jit_it_is_the_same(items, variant, gap, seconds):
    host = pad_layout(lay_out(items, variant, gap=gap, second_per_grid_t=seconds), ROOM)
    conversation = read_events(events_of(items), SPECIAL)
    ids, step = (np.full(ROOM, SPECIAL.im_start, np.int32) for _ in range(2))
    length, grid = len(conversation.token_ids), np.zeros((PIECES, 3), np.int32)
    ids[:length], step[:length] = conversation.token_ids, conversation.step
    grid[: len(conversation.video_grid_thw)] = conversation.video_grid_thw
    found = on_device(ids, step, grid, length, conversation.num_sources, gap, seconds, variant=variant)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(host, name), getattr(found, name), err_msg=name)
    for edge in ("start", "stop"):
        np.testing.assert_array_equal(getattr(host.spans, edge), getattr(found.spans, edge))


ASKED = SourceText((SPECIAL.vision_end, 50, 51, SPECIAL.vision_start))
FRAME = SourceFrame(1, 2)
TALK = [
    Step([SourceText((SPECIAL.im_start, 40, SPECIAL.vision_start), is_item=False), FRAME]),
    Step([ASKED]),
    Step([FRAME], [*SPECIAL.prefix, 60]),
    Step([ASKED], [61]),
    Step([FRAME], [SPECIAL.im_end, SPECIAL.newline, *SPECIAL.prefix, 62, 63]),
]
"""Two questions, the second while the first is being answered."""


@pytest.mark.parametrize("variant", list(Variant))
def test_growth_on_the_device(variant):
    functions = {name: getattr(device, name) for name in NUMPY}
    host, other = (grow(TALK, variant, gap=50, stride=1.5, functions=some) for some in (NUMPY, functions))
    for expected, found in zip(host, other, strict=True):
        np.testing.assert_array_equal(expected, found)


def test_a_question_in_mid_stream_by_hand():
    """GDPE: the prefix sees what has arrived when the answer begins, the token before a word what the word may see."""
    layout = lay_out(TALK, "gdpe")
    mask, is_source = mask_in_line_order(layout), np.arange(len(layout)) < 17
    assert mask[:, is_source].sum(axis=1)[17:].tolist() == [11, 11, 11, 15, 17, 17, 17, 17, 17, 17, 17, 17]
    assert mask[:, ~is_source].sum(axis=1).tolist() == [0] * 17 + list(range(1, 13))
    ids = in_line_order(layout, layout.position_ids)
    np.testing.assert_array_equal(ids[0, :17], [0, 1, 2, 3, 3, 5, 6, 7, 8, 9, 9, 11, 12, 13, 14, 15, 15])
    np.testing.assert_array_equal(ids[2, :17], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16])
    np.testing.assert_array_equal(ids[0, 17:], np.arange(12))
    slot = {int(index): place for place, index in enumerate(layout.chat_index)}
    assert layout.step[[slot[index] for index in (0, 4, 5, 9, 17, 21, 22)]].tolist() == [0, 0, 1, 2, 2, 3, 4]
    assert layout.labels[[slot[index] for index in range(19, 29)]].tolist() == [
        *(60, 61, SPECIAL.im_end, -100, -100, -100, -100, 62, 63, -100)
    ]


def test_ospe_by_hand():
    """A question starts with the words that are spoken meanwhile, and the frame behind it where the longer ends."""
    ids = (SPECIAL.vision_end, 50, SPECIAL.vision_start)
    items = [
        Step([SourceText((40,), is_item=False), SourceFrame(1, 1)], [*SPECIAL.prefix, 60, 61, 62, 63, 64]),
        Step([SourceText(ids)]),
        Step([SourceFrame(1, 1)], [65]),
    ]
    layout = lay_out(items, "ospe")
    positions = in_line_order(layout, layout.position_ids)
    np.testing.assert_array_equal(positions[0], [0, 1, 2, 3, 4, 10, 2, 3, 4, 5, 6, 7, 8, 9, 11])


def test_packed_conversations_are_unchanged():
    layouts = [lay_out(TALK, "gdpe"), lay_out(TALK[:3], "gdpe")]
    for layout, again in zip(layouts, unpack_layouts(pack_layouts(layouts, 60)), strict=True):
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(layout, name), getattr(again, name))
        np.testing.assert_array_equal(layout.spans.stop, again.spans.stop)


@st.composite
def watched(draw):
    """A chat about one video, and counts that its answer is long enough for."""
    counts = draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
    size = draw(st.sampled_from([(2, 2), (4, 2), (2, 6)]))
    closed = draw(st.booleans())
    length = draw(st.integers(sum(counts[:-1]), sum(counts) + 3) if closed else st.integers(0, sum(counts)))
    return Chat((Turn((Item((len(counts), *size)),), length, closed),)), counts


@settings(max_examples=100, deadline=None)
@given(watched(), VARIANTS, st.sampled_from([0, 10_000]))
def test_without_text_between_frames_it_is_the_layout_of_a_chat(example, variant, gap):
    chat, counts = example
    (turn,) = chat.turns
    old = build_layout(
        chat.ids, chat.grids(is_video=True), variant=variant, schedule=counts, gap=gap, special_tokens=SPECIAL
    )
    first = int(np.flatnonzero(chat.ids == SPECIAL.video_pad)[0])
    _, rows, columns = turn.items[0].grid
    sources = [SourceText(tuple(chat.ids[:first].tolist()), is_item=False)]
    sources += [SourceFrame(rows // 2, columns // 2)] * turn.frames
    sources.append(SourceText(SPECIAL.trailer, is_item=False))
    words = tuple(range(2000, 2000 + turn.answer_length))
    events = schedule_answers(sources, [Answer(words, is_closed=turn.closed)], counts, SPECIAL)
    new = build_conversation(events, variant=variant, gap=gap, special_tokens=SPECIAL)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(old, name), getattr(new, name), err_msg=name)
    settled = np.ones(len(new), bool)
    if not turn.closed:  # what follows is not known to either: by the schedule, or nothing yet
        settled[new.chat_index == len(new) - 1] = False
    np.testing.assert_array_equal(np.array(old.spans)[:, settled], np.array(new.spans)[:, settled])


PROMPT = SourceText((1, 2), is_item=False)


def spoken_after(sources, answers, schedule):
    """What is spoken after each item."""
    events = schedule_answers(sources, answers, schedule, SPECIAL)
    spoken = [()] * (max(number_items(events)) + 1)
    for event, item in zip(events, number_items(events), strict=True):
        if isinstance(event, Spoken):
            spoken[item] = event.token_ids
    assert [event for event in events if not isinstance(event, Spoken)] == sources
    return spoken


def test_answers_wait_for_their_question_and_for_one_another():
    sources = [PROMPT, FRAME, ASKED, FRAME, ASKED, FRAME, FRAME]
    prefix, end = SPECIAL.prefix, (SPECIAL.im_end, SPECIAL.newline)
    answers = [Answer((60, 61, 62), after=1), Answer((70,), after=3), Answer((80, 81, 82), after=0, is_closed=False)]
    assert spoken_after(sources, answers, 2) == [
        (),
        (*prefix, 60, 61),
        (62, *end),
        (*prefix, 70, *end, *prefix),
        (80, 81),
        (82,),
    ]
    assert spoken_after(sources, answers[:1], [0, 0, 1, 0, 3, 0]) == [(), prefix, (60,), (), (61, 62, *end), ()]
    assert spoken_after(sources, answers[:1], [0] * 6)[-1] == (60, 61, 62, *end)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([Spoken(SPECIAL.prefix), FRAME], "cannot begin with an answer"),
        ([PROMPT, SourceFrame(0, 2)], "event 1 is a frame of 0 x 2 tokens"),
        ([PROMPT, FRAME, SourceFrame(2, 2)], r"event 2 is a frame of \[4, 4\] patches after one of \[2, 4\]"),
        ([PROMPT, SourceText(())], "event 1 must have tokens"),
        ([PROMPT, SourceText((SPECIAL.video_pad,))], "event 1 must have tokens, and none of images or videos"),
        ([PROMPT, FRAME, Spoken((60,))], "must begin with the assistant's prefix"),
    ],
)
def test_impossible_events(events, message):
    with pytest.raises(ValueError, match=message):
        build_conversation(events, variant="gdpe", special_tokens=SPECIAL)


def test_impossible_arguments():
    with pytest.raises(ValueError, match="gap must be at least 0, got -1"):
        build_conversation([PROMPT, FRAME], variant="gipe", gap=-1, special_tokens=SPECIAL)
    with pytest.raises(ValueError, match=r"must be above 0, got 0\.0"):
        build_conversation([PROMPT, FRAME], variant="gdpe", second_per_grid_t=0.0, special_tokens=SPECIAL)
    with pytest.raises(ValueError, match="answer 1 waits for item 2, and there are 2, from 0 on"):
        schedule_answers([PROMPT, FRAME, ASKED], [Answer((5,)), Answer((5,), after=2)], 3, SPECIAL)
    with pytest.raises(ValueError, match="counts for 3 frames, 1 more than the 2"):
        schedule_answers([PROMPT, FRAME, ASKED], [Answer((5,))], [1, 1, 1], SPECIAL)
