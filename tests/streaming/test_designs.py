"""Every position design over random chats: visibility, positions, growth step by step, and the device's functions."""

import functools
import pickle

import jax
import numpy as np
import pytest
from chats import SPECIAL, Chat, Item, Turn, chats, frame_of_word
from hypothesis import given, settings
from hypothesis import strategies as st

from swjax.streaming import (
    DESIGNS,
    TWO,
    Counting,
    Design,
    KeySpans,
    Storage,
    StoredCounts,
    Variant,
    begin_turn,
    build_layout,
    device,
    first_positions,
    pad_layout,
    place_frame,
    place_image,
    place_text,
    place_words,
    store_sources,
    store_targets,
)

VARIANTS = st.sampled_from(list(Variant))


def layout_of(chat: Chat, counts, variant, **overrides):
    arguments = {"image_grid_thw": chat.grids(is_video=False), "variant": variant, "schedule": counts} | overrides
    return build_layout(chat.ids, chat.grids(is_video=True), special_tokens=SPECIAL, **arguments)


def in_chat_order(layout, values):
    ordered = np.empty_like(values)
    ordered[..., layout.chat_index] = values
    return ordered


def mask_in_chat_order(layout):
    mask = np.zeros((len(layout), len(layout)), bool)
    mask[np.ix_(layout.chat_index, layout.chat_index)] = layout.spans.to_mask(len(layout))
    return mask


def expected_group_mask(chat: Chat, counts) -> np.ndarray:
    """The group mask by asking of every pair of tokens whether the one has arrived when the other is fed."""

    def sees(query_index: int, key_index: int) -> bool:
        query, key = chat.tokens[query_index], chat.tokens[key_index]
        if key_index > query_index:
            return False
        if not query.is_target:
            return not key.is_target
        if key.is_target or key.turn < query.turn:
            return True
        of_turn = chat.counts_of_turn(counts, query.turn)
        return key.frame <= frame_of_word(of_turn, query.answer_index + 1) + 1

    length = len(chat.tokens)
    return np.array([[sees(query, key) for key in range(length)] for query in range(length)]).reshape(length, length)


@settings(max_examples=150, deadline=None)
@given(chats(), VARIANTS)
def test_visibility(example, variant):
    chat, counts = example
    layout = layout_of(chat, counts, variant)
    length = len(layout)
    assert sorted(layout.chat_index) == list(range(length))
    np.testing.assert_array_equal(layout.token_ids, chat.ids[layout.chat_index])
    assert (layout.spans.start >= 0).all()
    assert (layout.spans.stop <= length).all()
    mask = mask_in_chat_order(layout)
    assert mask.diagonal().all(), "a token does not see itself"
    design = DESIGNS[Variant(variant)]
    if design.grouped:
        np.testing.assert_array_equal(mask, expected_group_mask(chat, counts))
        is_target = np.array([token.is_target for token in chat.tokens])
        assert not mask[np.ix_(~is_target, is_target)].any(), "a source sees an answer"
    elif design.storage is Storage.CHAT:
        np.testing.assert_array_equal(mask, np.tri(length, dtype=bool))
    else:
        arrival = sorted(range(length), key=lambda index: _arrival(chat, counts, index))
        np.testing.assert_array_equal(layout.chat_index, arrival)
        np.testing.assert_array_equal(layout.spans.to_mask(length), np.tri(length, dtype=bool))


def _arrival(chat: Chat, counts, index: int):
    """Turn by turn: frame, then the words spoken after it."""
    token = chat.tokens[index]
    if token.is_target:
        return token.turn, frame_of_word(chat.counts_of_turn(counts, token.turn), token.answer_index), 1, index
    return token.turn, max(token.frame - 1, 0), 0, index


@settings(max_examples=100, deadline=None)
@given(chats(), VARIANTS)
def test_labels(example, variant):
    """Each answer token and its end is predicted once, by what stands before it: in the answer, or in arrival order."""
    chat, counts = example
    layout = layout_of(chat, counts, variant)
    expected = np.full(len(layout), -100)
    for slot, index in enumerate(layout.chat_index):
        if DESIGNS[Variant(variant)].storage is Storage.ARRIVAL:
            following = layout.chat_index[slot + 1] if slot + 1 < len(layout) else None
        else:
            following = index + 1 if index + 1 < len(layout) else None
        if following is not None:
            token = chat.tokens[following]
            length = chat.turns[token.turn].answer_length
            if token.is_target and 0 <= token.answer_index <= length:
                expected[slot] = token.id
    np.testing.assert_array_equal(layout.labels, expected)
    wanted = sum((turn.answer_length or 0) + turn.closed for turn in chat.turns if turn.answer_length is not None)
    assert (layout.labels >= 0).sum() == wanted


def grow(chat: Chat, counts, variant, *, gap: int, stride: float, functions):
    """Go through the chat event by event; gives ids and what each token sees, in chat order."""
    design = DESIGNS[Variant(variant)]
    positions = np.zeros((3, len(chat.tokens)), np.int32)
    slots, spans = np.zeros(len(chat.tokens), int), np.zeros((len(chat.tokens), 2), int)
    counted, stored = first_positions(design, gap), StoredCounts(0, 0)

    def store(kind, indices):
        nonlocal stored
        stored, here, seen = functions[kind](design, stored, len(indices))
        slots[indices] = here
        spans[indices] = np.stack([seen.start, seen.stop], axis=1)

    for turn_number, turn in enumerate(chat.turns):
        of_turn = chat.counts_of_turn(counts, turn_number)
        mine = [index for index, token in enumerate(chat.tokens) if token.turn == turn_number]
        sources = [index for index in mine if not chat.tokens[index].is_target]
        words = [index for index in mine if chat.tokens[index].is_target]
        counted = functions["begin_turn"](design, counted)
        sizes = [item for item in turn.items for _ in range(item.grid[0])]
        numbers = [number for item in turn.items for number in range(item.grid[0])]
        spoken, waiting = 0, []

        def speak(frame, words=words, of_turn=of_turn):
            nonlocal spoken, waiting, counted
            while spoken < len(words) and frame_of_word(of_turn, chat.tokens[words[spoken]].answer_index) <= frame:
                if waiting:
                    store("store_targets", waiting)
                    waiting = []
                index = words[spoken]
                counted, positions[:, [index]] = functions["place_words"](design, counted, 1)
                waiting, spoken = [index], spoken + 1
            successor_is_due = frame_of_word(of_turn, chat.tokens[words[spoken - 1]].answer_index + 1) <= frame
            if waiting and (successor_is_due or design.storage is Storage.ARRIVAL):
                store("store_targets", waiting)
                waiting = []

        at, frames_seen = 0, 0
        while at < len(sources):
            token = chat.tokens[sources[at]]
            if token.id in (SPECIAL.video_pad, SPECIAL.image_pad):
                item, number = sizes.pop(0), numbers.pop(0)
                if words and item.is_video and design.speaks_while_watching and frames_seen:
                    speak(frames_seen - 1)
                rows, columns = item.grid[1] // 2, item.grid[2] // 2
                indices = sources[at : at + rows * columns]
                if item.is_video:
                    placed = functions["place_frame"](design, counted, number, rows, columns, stride)
                else:
                    placed = functions["place_image"](design, counted, rows, columns)
                counted, positions[:, indices] = placed
                frames_seen += item.is_video
            else:
                indices = [sources[at]]
                counted, positions[:, indices] = functions["place_text"](design, counted, 1)
            store("store_sources", indices)
            at += len(indices)
        if words:
            speak(max(frames_seen - 1, 0))
    mask = KeySpans(spans[:, 0], spans[:, 1])
    seen = (slots[None] >= mask.start[:, None]) & (slots[None] < mask.stop[:, None])
    return positions, seen


NUMPY = {
    function.__name__: function
    for function in (place_text, place_frame, place_image, place_words, begin_turn, store_sources, store_targets)
}


@settings(max_examples=200, deadline=None)
@given(chats(), VARIANTS, st.sampled_from([0, 7, 10_000]), st.sampled_from([0.4, 1.0, 1.5, 2 / 3]))
def test_a_stream_grown_step_by_step_is_the_layout_of_training(example, variant, gap, seconds):
    chat, counts = example
    layout = layout_of(chat, counts, variant, gap=gap, second_per_grid_t=seconds)
    positions, seen = grow(chat, counts, variant, gap=gap, stride=seconds * 2.0, functions=NUMPY)
    np.testing.assert_array_equal(in_chat_order(layout, layout.position_ids), positions)
    np.testing.assert_array_equal(mask_in_chat_order(layout), seen)


@pytest.mark.parametrize("variant", list(Variant))
def test_growth_on_the_device(variant):
    chat = Chat((Turn((Item((3, 4, 2)), Item((1, 2, 4), False)), 7), Turn((Item((2, 2, 2)),), 4)))
    counts = np.array([2, 0, 3, 1, 1], np.int32)
    functions = {name: getattr(device, name) for name in NUMPY}
    on_host = grow(chat, counts, variant, gap=50, stride=1.5, functions=NUMPY)
    on_device = grow(chat, counts, variant, gap=50, stride=1.5, functions=functions)
    for host, other in zip(on_host, on_device, strict=True):
        np.testing.assert_array_equal(host, other)


@functools.partial(jax.jit, static_argnames="variant")
def layout_on_device(ids, grid, num_tokens, counts, gap, seconds, *, variant):
    return device.build_layout(
        ids,
        grid,
        num_tokens=num_tokens,
        schedule=counts,
        gap=gap,
        second_per_grid_t=seconds,
        variant=variant,
        special_tokens=SPECIAL,
    )


@settings(max_examples=80, deadline=None)
@given(chats(), VARIANTS, st.sampled_from([0, 7, 10_000]), st.sampled_from([0.4, 1.0, 1.5, 2 / 3]))
def test_layouts_inside_jit_equal_those_of_the_host(example, variant, gap, seconds):
    chat, counts = example
    length, room = 512, 40
    host = pad_layout(layout_of(chat, counts, variant, gap=gap, second_per_grid_t=seconds), length)
    ids = np.full(length, SPECIAL.im_start, np.int32)
    ids[: len(chat.ids)] = chat.ids
    grid = np.zeros((9, 3), np.int32)
    grid[: len(chat.merged_grids)] = chat.merged_grids
    padded_counts = np.zeros(room, np.int32)
    padded_counts[: len(counts)] = counts
    on_device = layout_on_device(ids, grid, len(chat.ids), padded_counts, gap, seconds, variant=variant)
    for name in ("token_ids", "position_ids", "labels", "chat_index", "step", "is_target"):
        np.testing.assert_array_equal(getattr(host, name), getattr(on_device, name), err_msg=name)
    np.testing.assert_array_equal(host.spans.start, on_device.spans.start)
    np.testing.assert_array_equal(host.spans.stop, on_device.spans.stop)


def positions_of(chat, counts, variant, **overrides):
    layout = layout_of(chat, counts, variant, **overrides)
    return in_chat_order(layout, layout.position_ids)


SMALL = Chat((Turn((Item((3, 4, 2)),), 7, question_length=0),))
"""Sources: 3 of the user's prefix, <|vision_start|>, 3 frames of 2 x 1, trailer; targets: prefix, 7 words, end."""


def test_interleave_counts_on_in_arrival_order():
    """Paper, section 3: V_1 prefix A_1 V_2 A_2 V_3 trailer A_3."""
    positions = positions_of(SMALL, 2, "interleave")
    frames, trailer, words = positions[:, 4:10], positions[0, 10:13], positions[:, 13:]
    np.testing.assert_array_equal(positions[0, :4], [0, 1, 2, 3])
    np.testing.assert_array_equal(frames[0], [4, 4, 11, 11, 15, 15])
    np.testing.assert_array_equal(frames[1], [4, 5, 11, 12, 15, 16])
    np.testing.assert_array_equal(frames[2], [4, 4, 11, 11, 15, 15])
    np.testing.assert_array_equal(trailer, [17, 18, 19])
    np.testing.assert_array_equal(words[0], [6, 7, 8, 9, 10, 13, 14, 20, 21, 22, 23, 24])
    np.testing.assert_array_equal(words, np.broadcast_to(words[0], words.shape))


def test_ospe_overlaps_a_frame_with_the_words_before_it():
    """Paper, section 3: V_2 and A_1 start behind V_1; V_3 and A_2 behind the longer of the two."""
    positions = positions_of(SMALL, 2, "ospe")
    frames, trailer, words = positions[:, 4:10], positions[0, 10:13], positions[:, 13:]
    np.testing.assert_array_equal(frames[0], [4, 4, 6, 6, 11, 11])
    np.testing.assert_array_equal(frames[1], [4, 5, 6, 7, 11, 12])
    np.testing.assert_array_equal(trailer, [13, 14, 15])
    np.testing.assert_array_equal(words[0], [6, 7, 8, 9, 10, 11, 12, 16, 17, 18, 19, 20])


def test_groups_do_not_know_of_each_other():
    """GDPE: the words' ids do not depend on the video, nor the frames' ids on the words."""
    longer = Chat((Turn((Item((9, 8, 8)),), 30, question_length=9),))
    small, large = positions_of(SMALL, 2, "gdpe"), positions_of(longer, 2, "gdpe")
    np.testing.assert_array_equal(small[:, -12:], np.broadcast_to(np.arange(12), (3, 12)))
    np.testing.assert_array_equal(large[:, -35:], np.broadcast_to(np.arange(35), (3, 35)))
    np.testing.assert_array_equal(positions_of(SMALL, 2, "gipe", gap=64)[:, -12:], small[:, -12:] + 64)


def test_text_alone():
    chat = Chat((Turn((), 4), Turn((), 2)))
    for variant in Variant:
        positions = positions_of(chat, 3, variant, gap=0)
        if variant in ("offline", "interleave", "ospe"):
            np.testing.assert_array_equal(positions[0], np.arange(len(chat.tokens)))
        else:
            is_target = np.array([token.is_target for token in chat.tokens])
            np.testing.assert_array_equal(positions[0, is_target], np.arange(is_target.sum()))
            np.testing.assert_array_equal(positions[0, ~is_target], np.arange((~is_target).sum()))


def test_no_answer_yet():
    chat = Chat((Turn((Item((2, 4, 4)),), None),))
    for variant in Variant:
        layout = layout_of(chat, 3, variant)
        assert not layout.is_target.any()
        assert (layout.labels == -100).all()
        np.testing.assert_array_equal(layout.chat_index, np.arange(len(chat.tokens)))


def test_frame_rates_of_several_videos():
    chat = Chat((Turn((Item((3, 2, 2)), Item((1, 2, 2), False), Item((3, 2, 2))), 20),))
    positions = positions_of(chat, 3, "gdpe", second_per_grid_t=[1.0, 0.5])
    is_video = chat.ids == SPECIAL.video_pad
    temporal = positions[0, is_video]
    np.testing.assert_array_equal(temporal[:3] - temporal[0], [0, 2, 4])
    np.testing.assert_array_equal(temporal[3:] - temporal[3], [0, 1, 2])


# A step begins 100 ids behind where the words before it began (a turn: where they ended), and its words 7 ids later.
SPACED = Counting(
    first_source=lambda before, opens_turn, xp: 100 + xp.where(opens_turn, before.target, before.words),
    first_word=lambda before, next_source, xp: next_source + 7,
    words_move_sources=True,
)
ADDED = {
    "Toy_Counting": Design(Storage.GROUPED, SPACED, "steps 100 ids apart", alias="spaced"),
    "toy_design": Design(Storage.ARRIVAL, TWO, "two counts, in order of arrival", from_the_gap=True),
}


@pytest.fixture
def added(monkeypatch):
    """Designs that somebody else has added."""
    for name, design in ADDED.items():
        monkeypatch.setitem(DESIGNS, name, design)


@pytest.mark.usefixtures("added")
def test_added_designs_are_known_by_name():
    assert list(Variant)[-2:] == list(ADDED)
    assert Variant("spaced") is Variant("toy_counting") is pickle.loads(pickle.dumps(Variant("SPACED")))
    with pytest.raises(ValueError, match=r"unknown variant 'no'; choose one of: .*Toy_Counting \(alias spaced\), toy_"):
        Variant("no")


def test_variants_are_read_like_an_enumeration():
    assert [variant.value for variant in Variant] == list(DESIGNS)
    assert all(Variant[variant.name] is variant is Variant(variant.value) for variant in Variant)
    assert isinstance(Variant.GDPE, Variant)
    assert Variant.GDPE in Variant
    assert "overlap" in Variant
    assert "no" not in Variant


@pytest.mark.usefixtures("added")
def test_an_added_counting_counts():
    positions = positions_of(SMALL, 2, "spaced")
    np.testing.assert_array_equal(positions[0, :4], [100, 101, 102, 103])
    np.testing.assert_array_equal(positions[0, 4:10], [104, 104, 213, 213, 322, 322])
    np.testing.assert_array_equal(positions[1, 4:10], [104, 105, 213, 214, 322, 323])
    np.testing.assert_array_equal(positions[0, 10:13], [324, 325, 326])
    np.testing.assert_array_equal(positions[0, 13:], [113, 114, 115, 116, 117, 222, 223, 334, 335, 336, 337, 338])


@pytest.mark.usefixtures("added")
def test_an_added_design_is_made_of_known_parts():
    """As many ids as GIPE, and who sees whom as in interleave."""
    np.testing.assert_array_equal(positions_of(SMALL, 2, "toy_design"), positions_of(SMALL, 2, "gipe"))
    mask, known = (mask_in_chat_order(layout_of(SMALL, 2, variant)) for variant in ("toy_design", "interleave"))
    np.testing.assert_array_equal(mask, known)


@pytest.mark.parametrize("variant", ADDED)
def test_added_designs_are_laid_out_grown_and_compiled_alike(added, variant):
    @settings(max_examples=30, deadline=None)
    @given(chats(), st.sampled_from([0, 7]))
    def check(example, gap):
        test_a_stream_grown_step_by_step_is_the_layout_of_training.hypothesis.inner_test(example, variant, gap, 1.5)
        test_layouts_inside_jit_equal_those_of_the_host.hypothesis.inner_test(example, variant, gap, 1.5)
        test_visibility.hypothesis.inner_test(example, variant)
        test_labels.hypothesis.inner_test(example, variant)

    check()
    test_growth_on_the_device(variant)
