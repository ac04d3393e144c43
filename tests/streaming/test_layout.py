"""Layouts against the recorded positions and masks, and the errors of impossible input."""

from pathlib import Path

import numpy as np
import pytest
from chats import SPECIAL, Chat, Item, Turn

from swjax.streaming import SpecialTokens, Variant, build_layout, pad_layout

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "streaming_layouts.npz")
CASES = sorted({name.split("/")[0] for name in GOLDEN.files})


def golden(case: str) -> dict[str, np.ndarray]:
    return {name.split("/")[1]: GOLDEN[name] for name in GOLDEN.files if name.startswith(f"{case}/")}


def layout_of(data, variant, **overrides):
    arguments = {
        "variant": variant,
        "schedule": int(data["wait_k"]),
        "second_per_grid_t": float(data["second_per_grid_t"]),
        "special_tokens": SPECIAL,
    }
    return build_layout(data["input_ids"], data["grid_thw"][None], **(arguments | overrides))


def mask_in_chat_order(layout) -> np.ndarray:
    mask = np.zeros((len(layout), len(layout)), bool)
    mask[np.ix_(layout.chat_index, layout.chat_index)] = layout.spans.to_mask(len(layout))
    return mask


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", ["offline", "gdpe", "gipe"])
def test_golden_positions(case, variant):
    data = golden(case)
    layout = layout_of(data, variant)
    expected = data["positions_gipe_10000" if variant == "gipe" else f"positions_{variant}"]
    np.testing.assert_array_equal(layout.position_ids, expected[:, layout.chat_index])
    np.testing.assert_array_equal(layout.token_ids, data["input_ids"][layout.chat_index])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", ["ospe", "gdpe", "gipe"])
def test_golden_group_mask(case, variant):
    data = golden(case)
    np.testing.assert_array_equal(mask_in_chat_order(layout_of(data, variant)), data["group_mask"])


def test_offline_gdpe_has_offline_sources_and_gdpe_targets():
    data = golden("case1")
    layout = layout_of(data, "offline_gdpe")
    np.testing.assert_array_equal(layout.position_ids, data["positions_gdpe"])
    np.testing.assert_array_equal(mask_in_chat_order(layout), np.tri(len(layout), dtype=bool))


def test_explicit_counts_equal_wait_k():
    data = golden("case3")
    by_k = layout_of(data, "gdpe")
    by_counts = layout_of(data, "gdpe", schedule=[int(data["wait_k"])] * int(data["grid_thw"][0]))
    np.testing.assert_array_equal(by_k.spans.stop, by_counts.spans.stop)


def test_padding_sees_itself_alone():
    layout = layout_of(golden("case2"), "gdpe")
    padded = pad_layout(layout, len(layout) + 9)
    mask = padded.spans.to_mask(len(padded))
    np.testing.assert_array_equal(mask[: len(layout), : len(layout)], layout.spans.to_mask(len(layout)))
    assert not mask[: len(layout), len(layout) :].any()
    np.testing.assert_array_equal(mask[len(layout) :], np.eye(len(padded), dtype=bool)[len(layout) :])
    with pytest.raises(ValueError, match=f"has {len(layout)} tokens, 3 more than the row"):
        pad_layout(layout, len(layout) - 3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"variant": "gddpe"}, r"unknown variant 'gddpe'; choose one of: .*gdpe \(alias group\)"),
        ({"gap": -1}, "gap must be at least 0, got -1"),
        ({"schedule": 0}, "k >= 1"),
        ({"schedule": [3, 3]}, "counts for 2 frames, 2 fewer than the 4 there are"),
        ({"schedule": [3] * 9}, "counts for 9 frames, 5 more than the 4 there are"),
        ({"schedule": [3, -1, 3, 3]}, "negative count: -1 at frame 1"),
        ({"second_per_grid_t": [1.0, 2.0]}, "second_per_grid_t has 2 values, but there are 1 videos"),
        ({"second_per_grid_t": 0.0}, "must be above 0"),
        (
            {"schedule": 9},
            r"answer of turn 0 has 14 tokens, 13 fewer than the schedule speaks before the last of 4 frames \(27\)",
        ),
    ],
)
def test_impossible_arguments(overrides, message):
    with pytest.raises(ValueError, match=message):
        layout_of(golden("case0"), **({"variant": "gdpe"} | overrides))


def test_the_answer_that_is_too_short_is_named():
    chat = Chat((Turn((Item((2, 2, 2)),), 6), Turn((Item((5, 2, 2)),), 11)))
    with pytest.raises(ValueError, match=r"answer of turn 1 has 11 tokens, 1 fewer .* last of 5 frames \(12\)"):
        build_layout(chat.ids, chat.grids(is_video=True), variant="ospe", special_tokens=SPECIAL)


@pytest.mark.parametrize(
    ("videos", "images", "message"),
    [
        ([[2, 4, 4], [3, 4, 4]], [[1, 2, 4]], r"video 1 has 8 <\|video_pad\|> tokens .* \[3, 4, 4\] makes 12"),
        ([[2, 4, 4]], [[1, 2, 4]], r"2 runs of <\|video_pad\|>, but there are 1 videos"),
        ([[2, 4, 4], [2, 4, 4]], [], r"1 runs of <\|image_pad\|>, but there are 0 images"),
        ([[2, 4, 4], [2, 4, 4]], [[1, 2, 2]], r"image 0 has 2 <\|image_pad\|> tokens .* makes 1"),
        ([[2, 4, 4], [2, 4, 4]], [[2, 2, 2]], "an image has one temporal step"),
        ([[2, 4, 4], [2, 3, 4]], [[1, 2, 4]], "multiples of 2"),
        ([[2, 4, 4], [0, 4, 4]], [[1, 2, 4]], "at least 1"),
    ],
)
def test_grids_that_do_not_match(videos, images, message):
    chat = Chat((Turn((Item((2, 4, 4)), Item((1, 2, 4), False), Item((2, 4, 4))), 9),))
    with pytest.raises(ValueError, match=message):
        build_layout(chat.ids, videos, image_grid_thw=images, variant="gdpe", special_tokens=SPECIAL)


@pytest.mark.parametrize(
    ("alias", "variant"),
    [
        ("origin", "offline"),
        ("batch", "offline_gdpe"),
        ("interleave", "interleave"),
        ("overlap", "ospe"),
        ("group", "gdpe"),
        ("gap", "gipe"),
        ("GDPE", "gdpe"),
    ],
)
def test_aliases(alias, variant):
    assert Variant(alias) is Variant(variant)


def test_special_tokens_must_be_known():
    with pytest.raises(ValueError, match="video_pad and image_pad share the id 7"):
        SpecialTokens(1, 2, 3, 4, 7, 7, 8, 9)
    with pytest.raises(ValueError, match="im_end has the id -1"):
        SpecialTokens(1, -1, 3, 4, 5, 7, 8, 9)
