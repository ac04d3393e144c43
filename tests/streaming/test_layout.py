"""Layouts against the recorded positions and masks, and the errors of impossible input."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swjax.streaming import SpecialTokens, Variant, build_layout, pad_layout

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "streaming_layouts.npz")
CASES = sorted({name.split("/")[0] for name in GOLDEN.files})
SPECIAL = SpecialTokens.qwen2_5_vl()


def golden(case: str) -> dict[str, np.ndarray]:
    return {name.split("/")[1]: GOLDEN[name] for name in GOLDEN.files if name.startswith(f"{case}/")}


def chat(
    answer_length: int, grid: tuple[int, int, int], *, closed: bool = True, question_length: int = 4
) -> np.ndarray:
    video_tokens = grid[0] * grid[1] * grid[2] // 4
    question = list(range(1000, 1000 + question_length))
    user = [SPECIAL.im_start, 872, SPECIAL.newline, *question, SPECIAL.vision_start]
    answer = list(range(2000, 2000 + answer_length)) + ([SPECIAL.im_end, SPECIAL.newline] if closed else [])
    return np.array([*user, *[SPECIAL.video_pad] * video_tokens, *SPECIAL.trailer, *SPECIAL.prefix, *answer])


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
@pytest.mark.parametrize("variant", ["gdpe", "gipe"])
def test_golden_group_mask(case, variant):
    data = golden(case)
    np.testing.assert_array_equal(mask_in_chat_order(layout_of(data, variant)), data["group_mask"])


@pytest.mark.parametrize("variant", ["offline", "offline_gdpe"])
def test_offline_mask_is_causal(variant):
    data = golden("case0")
    layout = layout_of(data, variant)
    np.testing.assert_array_equal(mask_in_chat_order(layout), np.tri(len(layout), dtype=bool))


def test_offline_gdpe_has_offline_sources_and_gdpe_targets():
    data = golden("case1")
    np.testing.assert_array_equal(layout_of(data, "offline_gdpe").position_ids, data["positions_gdpe"])


@pytest.mark.parametrize("variant", list(Variant))
def test_labels_are_the_answer_and_its_end(variant):
    ids = chat(7, (2, 4, 4))
    layout = build_layout(ids, np.array([[2, 4, 4]]), variant=variant, special_tokens=SPECIAL)
    labels = np.empty(len(ids), np.int32)
    labels[layout.chat_index] = layout.labels
    first = len(ids) - 9
    expected = np.full(len(ids), -100)
    expected[first - 1 : first + 7] = [*range(2000, 2007), SPECIAL.im_end]
    np.testing.assert_array_equal(labels, expected)


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(1, 9),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    wait_k=st.integers(1, 5),
    extra=st.integers(0, 12),
    variant=st.sampled_from(list(Variant)),
    padding=st.integers(0, 20),
)
def test_invariants(frames, rows, columns, wait_k, extra, variant, padding):
    grid = (frames, 2 * rows, 2 * columns)
    answer_length = wait_k * frames + extra
    ids = chat(answer_length, grid)
    layout = build_layout(ids, np.array([grid]), variant=variant, schedule=wait_k, special_tokens=SPECIAL)
    assert sorted(layout.chat_index) == list(range(len(ids)))
    mask = mask_in_chat_order(layout)
    assert mask.diagonal().all()
    num_sources = len(ids) - 3 - answer_length - 2
    assert not mask[:num_sources, num_sources:].any(), "a source sees the answer"
    first_frame = int(np.argmax(ids == SPECIAL.video_pad))
    for j in range(answer_length):
        query = num_sources + 2 + j
        seen = mask[query, first_frame : first_frame + frames * rows * columns].reshape(frames, -1).all(axis=1).sum()
        assert seen == (min(j // wait_k, frames - 1) + 1 if variant in ("gdpe", "gipe") else frames)
        assert mask[query, num_sources : query + 1].all()
        assert not mask[query, query + 1 :].any()

    padded = pad_layout(layout, len(ids) + padding)
    padded_mask = padded.spans.to_mask(len(padded))
    np.testing.assert_array_equal(padded_mask[: len(ids), : len(ids)], layout.spans.to_mask(len(ids)))
    assert not padded_mask[: len(ids), len(ids) :].any()
    np.testing.assert_array_equal(padded_mask[len(ids) :], np.eye(len(padded), dtype=bool)[len(ids) :])


@settings(max_examples=30, deadline=None)
@given(frames=st.integers(1, 5), spoken=st.integers(0, 20), variant=st.sampled_from(list(Variant)))
def test_an_open_answer_is_the_beginning_of_the_finished_one(frames, spoken, variant):
    grid = (frames, 4, 4)
    whole = chat(max(20, 3 * frames), grid)
    part = chat(spoken, grid, closed=False)
    arguments = {"video_grid_thw": np.array([grid]), "variant": variant, "special_tokens": SPECIAL}
    finished, open_ = build_layout(whole, **arguments), build_layout(part, **arguments)
    finished_mask, open_mask = mask_in_chat_order(finished), mask_in_chat_order(open_)
    np.testing.assert_array_equal(open_mask, finished_mask[: len(part), : len(part)])
    positions = np.empty_like(finished.position_ids)
    positions[:, finished.chat_index] = finished.position_ids
    np.testing.assert_array_equal(open_.position_ids, positions[:, open_.chat_index])


def test_explicit_counts_equal_wait_k():
    data = golden("case3")
    by_k = layout_of(data, "gdpe")
    by_counts = layout_of(data, "gdpe", schedule=[int(data["wait_k"])] * int(data["grid_thw"][0]))
    np.testing.assert_array_equal(by_k.spans.stop, by_counts.spans.stop)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"variant": "gddpe"}, r"unknown variant 'gddpe'; choose one of: .*gdpe \(alias group\)"),
        ({"gap": -1}, "gap must be at least 0, got -1"),
        ({"schedule": 0}, "k >= 1"),
        ({"schedule": [3, 3]}, "counts for 2 frames, but the video has 4"),
        ({"schedule": [3, -1, 3, 3]}, "negative count: -1 at frame 1"),
        (
            {"schedule": 9},
            r"the answer has 14 tokens, 13 fewer than the schedule speaks before the last of 4 frames \(27\)",
        ),
    ],
)
def test_impossible_arguments(overrides, message):
    with pytest.raises(ValueError, match=message):
        layout_of(golden("case0"), **({"variant": "gdpe"} | overrides))


def test_impossible_chats():
    arguments = {"variant": "gdpe", "special_tokens": SPECIAL}
    with pytest.raises(ValueError, match=r"has 8 <\|video_pad\|> tokens, but .* makes 12"):
        build_layout(chat(9, (2, 4, 4)), np.array([[3, 4, 4]]), **arguments)
    with pytest.raises(ValueError, match=r"exactly one assistant turn .* found 0"):
        build_layout(chat(9, (2, 4, 4))[:10], np.array([[2, 4, 4]]), **arguments)
    with pytest.raises(ValueError, match=r"1 runs of .* there are 2 videos"):
        build_layout(chat(9, (2, 4, 4)), np.array([[1, 4, 4], [1, 4, 4]]), **arguments)
    layout = build_layout(chat(9, (2, 4, 4)), np.array([[2, 4, 4]]), **arguments)
    with pytest.raises(ValueError, match=f"has {len(layout)} tokens, 3 more than the row"):
        pad_layout(layout, len(layout) - 3)


@pytest.mark.parametrize(
    ("alias", "variant"), [("origin", "offline"), ("group", "gdpe"), ("gap", "gipe"), ("GDPE", "gdpe")]
)
def test_aliases(alias, variant):
    assert Variant(alias) is Variant(variant)
