"""Packing: nothing leaks, nothing is lost, and the bins are those of a naive first-fit-decreasing."""

import numpy as np
import pytest
from chats import SPECIAL, Chat, Item, Turn, chats
from hypothesis import given, settings
from hypothesis import strategies as st

from swjax.streaming import (
    Variant,
    bucket_of,
    build_layout,
    first_fit_decreasing,
    pack_layouts,
    unpack_layouts,
)

VARIANTS = st.sampled_from(list(Variant))


def build(chat, counts, variant):
    return build_layout(
        chat.ids,
        chat.grids(is_video=True),
        image_grid_thw=chat.grids(is_video=False),
        variant=variant,
        schedule=counts,
        special_tokens=SPECIAL,
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(chats(max_turns=2), VARIANTS), min_size=1, max_size=6), st.integers(0, 60))
def test_packing_and_unpacking_is_the_identity(examples, spare):
    layouts = [build(chat, counts, variant) for (chat, counts), variant in examples]
    length = max(map(len, layouts)) + spare
    packed = pack_layouts(layouts, length)
    assert sorted(number for members in packed.members for number in members) == list(range(len(layouts)))
    for layout, unpacked in zip(layouts, unpack_layouts(packed), strict=True):
        for name in ("token_ids", "position_ids", "labels", "chat_index", "step", "is_target"):
            np.testing.assert_array_equal(getattr(layout, name), getattr(unpacked, name), err_msg=name)
        np.testing.assert_array_equal(layout.spans.start, unpacked.spans.start)
        np.testing.assert_array_equal(layout.spans.stop, unpacked.spans.stop)
    for row, members in zip(packed.rows, packed.members, strict=True):
        assert len(row) == length
        expected = np.eye(length, dtype=bool)
        start = 0
        for number in members:
            stop = start + len(layouts[number])
            expected[start:stop, start:stop] = layouts[number].spans.to_mask(stop - start)
            start = stop
        np.testing.assert_array_equal(row.spans.to_mask(length), expected)
    real = sum((row.chat_index >= 0).sum() for row in packed.rows)
    assert packed.real_share == pytest.approx(real / (length * len(packed.rows)))


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 30)), max_size=40))
def test_first_fit_decreasing(sizes):
    capacity = np.array([50, 30])
    bins = first_fit_decreasing(np.array(sizes, int).reshape(-1, 2), capacity)
    expected, rooms = [], []
    for item in sorted(range(len(sizes)), key=lambda i: (-max(np.array(sizes[i]) / capacity), i)):
        for members, room in zip(expected, rooms, strict=True):
            if (room >= sizes[item]).all():
                members.append(item)
                room -= sizes[item]
                break
        else:
            expected.append([item])
            rooms.append(capacity - sizes[item])
    assert bins == tuple(map(tuple, expected))


def test_captions_of_all_lengths_fill_their_rows():
    lengths = np.random.default_rng(0).integers(100, 900, 400)
    bins = first_fit_decreasing(lengths[:, None], np.array([2048]))
    assert lengths.sum() / (2048 * len(bins)) > 0.98


def test_what_does_not_fit():
    chat = Chat((Turn((Item((2, 4, 4)),), 9),))
    layout = build(chat, 3, "gdpe")
    with pytest.raises(
        ValueError, match=rf"item 0 of size \[{len(layout)}\] is larger than a row of \[20\], by \[{len(layout) - 20}\]"
    ):
        pack_layouts([layout], 20)
    assert pack_layouts([], 20).rows == ()
    assert pack_layouts([], 20).real_share == 0


def test_buckets():
    buckets = np.array([[128, 100], [256, 100], [256, 400]])
    assert [bucket_of(np.array(size), buckets) for size in ([128, 100], [129, 3], [5, 101])] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"nothing of size \[257, 1\] fits a bucket"):
        bucket_of(np.array([257, 1]), buckets)
