"""Timing scores against numbers that a person can check, slow matching, and what constants must get."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swjax.data.moving_shapes.prepare import split_seed
from swjax.data.moving_shapes.scene import draw_scene
from swjax.evaluation.timing import (
    Episode,
    LiveTurn,
    OmniStar,
    best_prior,
    constant_speakers,
    frame_difference,
    live_constants,
    live_fluency,
    live_patience,
    live_scores,
    match_times,
    omnistar_scores,
    score_constants,
    threshold_curve,
    timer,
    timing_scores,
)

FRAMES = st.lists(st.integers(0, 8), max_size=5).map(lambda frames: tuple(sorted(frames)))


def values(scores):
    return {name: score.value for name, score in scores.items()}


@settings(max_examples=150, deadline=None)
@given(FRAMES, FRAMES, st.integers(0, 2))
def test_matching_is_the_best_of_all_one_to_one_matchings(spoken, due, tolerance):
    pairs = match_times(spoken, due, tolerance)
    assert all(abs(one - other) <= tolerance for one, other in pairs)
    best = (0, 0.0)
    few, many = sorted([spoken, due], key=len)
    for chosen in itertools.permutations(many, len(few)):
        near = [abs(one - other) for one, other in zip(few, chosen, strict=True) if abs(one - other) <= tolerance]
        best = max(best, (len(near), -sum(near)))
    assert (len(pairs), -sum(abs(one - other) for one, other in pairs)) == best
    for place, frames in enumerate((spoken, due)):
        used = [pair[place] for pair in pairs]
        assert all(used.count(frame) <= frames.count(frame) for frame in used)


def test_of_two_as_near_the_later_is_taken():
    assert match_times((4, 6), (5,), 1) == ((6, 5),)
    assert match_times((4, 5), (5,), 1) == ((5, 5),)
    assert match_times((4, 5), (5, 6), 1) == ((4, 5), (5, 6))


def test_scores_by_hand():
    episodes = [
        Episode((2, 5, 9), (2, 6, 12), 20, frame_s=3.0),  # 2 is exact, 5 a frame early, 9 a false alarm, 12 missed
        Episode((), (), 10, frame_s=3.0),
        Episode((4,), (4,), 10, frame_s=3.0),
    ]
    found = values(timing_scores(episodes))
    assert found == pytest.approx(
        {
            "precision_0": 2 / 4,
            "recall_0": 2 / 4,
            "f1_0": 2 / 4,
            "false_alarms_per_minute_0": 2 / 2,
            "precision_1": 3 / 4,
            "recall_1": 3 / 4,
            "f1_1": 3 / 4,
            "false_alarms_per_minute_1": 1 / 2,
            "delay_s_1": -3.0 / 3,
            "exact": 2 / 3,
            # segments [2, 2], [3, 6], [7, 12] with 2, 5 and 9 in them, and [4, 4] with 4
            "tim_diff_s": ((0 + 2 + 2) / 3 * 3.0 + 0) / 2,
            "redundancy": 0.0,
            "coverage": 1.0,
        }
    )
    silent = timing_scores([Episode((), (), 10)])
    assert values(silent)["exact"] == 1.0
    assert not {"delay_s_1", "tim_diff_s"} & set(silent), "a mean of nothing is no number"


def test_intervals_are_over_episodes():
    same = timing_scores([Episode((1,), (1,), 4)] * 5)["f1_0"]
    mixed = timing_scores([Episode((1,), (1,), 4), Episode((2,), (1,), 4)] * 5)["f1_0"]
    assert (same.low, same.high) == (1.0, 1.0)
    assert mixed.low < mixed.value == 0.5 < mixed.high


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((5,), (), 5), r"spoken must be ascending frames from 0 to 4, got \(5,\)"),
        (((), (2, 1), 5), "due must be ascending"),
        (((), (), 0), "needs frames that take time"),
        (((), (), 5, 0.0), "needs frames that take time"),
    ],
)
def test_impossible_episodes(arguments, message):
    with pytest.raises(ValueError, match=message):
        Episode(*arguments)


def test_omnistar_by_hand():
    assert omnistar_scores([0, 6, 7], [0, 4, 9]) == pytest.approx(OmniStar(4 / 3, 2 / 3, 2 / 3))
    assert omnistar_scores([7, 0, 6, 12], [0, 4, 9]) == omnistar_scores([0, 6, 7], [0, 4, 9])
    with pytest.raises(ValueError, match=r"must ascend, and there must be one, got \[3, 3\]"):
        omnistar_scores([0], [3, 3])
    with pytest.raises(ValueError, match="must ascend"):
        omnistar_scores([0], [])


ANNOTATED = st.sets(st.integers(0, 40), min_size=1, max_size=8).map(lambda times: tuple(sorted(times)))


@settings(max_examples=50, deadline=None)
@given(ANNOTATED)
def test_omnistar_of_constants(annotated):
    """Silence and speech at the annotated times have the same TimDiff, and speech all the time none."""
    lengths = np.diff((annotated[0] - 1, *annotated))
    silent = omnistar_scores((), annotated)
    assert silent == pytest.approx(OmniStar(np.mean(lengths - 1), 1, 0))
    assert omnistar_scores(annotated, annotated) == pytest.approx(OmniStar(silent.tim_diff, 0, 1))
    assert omnistar_scores(timer(41, 1), annotated) == pytest.approx(OmniStar(0, np.mean(lengths - 1), 1))


def test_the_table_of_timers_on_invented_annotations():
    """Segments [0, 0], [1, 4], [5, 9] and [2, 2], [3, 10]: each timer by hand."""
    episodes = [Episode((), (0, 4, 9), 10), Episode((), (2, 10), 11)]
    table = {
        name: tuple(scores[column].value for column in ("tim_diff_s", "redundancy", "coverage"))
        for name, scores in score_constants(episodes, periods=(2, 3, 5)).items()
    }
    expected = {
        "never": ((0 + 3 + 4) / 3, (0 + 7) / 2, 1, 1, 0, 0),
        "first_only": ((0 + 3 + 4) / 3, (0 + 7) / 2, 2 / 3, 1, 1 / 3, 0),
        "always": (0, 0, (0 + 3 + 4) / 3, (0 + 7) / 2, 1, 1),
        "every_2": ((0 + 1 + 1) / 3, (0 + 1) / 2, (0 + 1 + 1) / 3, (0 + 3) / 2, 1, 1),  # 0 | 2 4 | 6 8; 2 | 4 6 8 10
        "every_3": ((0 + 2 + 1) / 3, (0 + 0) / 2, (0 + 0 + 1) / 3, (1 + 2) / 2, 1, 1 / 2),  # 0 | 3 | 6 9;  | 3 6 9
        "every_5": ((0 + 3 + 0) / 3, (0 + 2) / 2, (0 + 1 + 0) / 3, (1 + 1) / 2, 2 / 3, 1 / 2),  # 0 |  | 5;  | 5 10
    }
    assert set(table) == set(expected)
    for name, columns in expected.items():
        means = [(columns[place] + columns[place + 1]) / 2 for place in (0, 2, 4)]
        assert table[name] == pytest.approx(means), name


def test_constants_speak_by_the_clock_alone():
    episode = Episode((1,), (3,), 7, kind="turn")
    speakers = constant_speakers(periods=(3,), prior={"turn": frozenset({2, 5, 9}), "hit": frozenset({1})})
    assert {name: speaker(episode) for name, speaker in speakers.items()} == {
        "never": (),
        "always": tuple(range(7)),
        "first_only": (0,),
        "every_3": (0, 3, 6),
        "prior": (2, 5),
    }
    assert timer(7, 3, first=2) == (2, 5)
    with pytest.raises(ValueError, match="period of 1 or more"):
        timer(7, 0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sets(st.integers(0, 3)), st.integers(4, 5), st.sampled_from("ab")), min_size=1, max_size=5)
)
def test_the_best_prior_is_the_best_of_all_fixed_sets(drawn):
    episodes = [Episode((), tuple(sorted(due)), length, kind=kind) for due, length, kind in drawn]

    def f1(prior):
        speaker = constant_speakers(prior=prior)["prior"]
        return timing_scores([replace(one, spoken=speaker(one)) for one in episodes])["f1_0"].value

    found = best_prior(episodes)
    assert set(found) == {episode.kind for episode in episodes}
    right = {kind: [episode for episode in episodes if episode.kind == kind] for kind in found}
    due = sum(len(episode.due) for episode in episodes)
    cells = [(kind, frame) for kind in found for frame in range(5)]
    best = 0.0
    for chosen in itertools.product([False, True], repeat=len(cells)):
        hits = said = 0
        for (kind, frame), taken in zip(cells, chosen, strict=True):
            if taken:
                hits += sum(frame in episode.due for episode in right[kind])
                said += sum(frame < episode.num_frames for episode in right[kind])
        best = max(best, 2 * hits / (said + due) if said + due else 0.0)
    assert f1(found) == pytest.approx(best)


def test_constants_on_moving_shapes():
    """What is already known of a hundred scenes: it is too dense a set for timing, unless one kind is asked about."""
    scenes = [draw_scene(split_seed(0, "test", index)) for index in range(100)]

    def episodes(*kinds):
        return [
            Episode(
                (),
                tuple(math.floor(event.visible_s) for event in scene.events if event.event.kind in kind),
                scene.duration_s,
                kind="+".join(kind),
            )
            for scene in scenes
            for kind in kinds
        ]

    dense = episodes(("enter", "turn", "hit", "recolour", "leave"))
    assert (sum(len(one.due) for one in dense), sum(one.num_frames for one in dense)) == (472, 812)
    table = score_constants(dense, periods=(2,))
    assert {name: round(table[name]["f1_0"].value, 3) for name in table} == {
        "never": 0.0,
        "always": 0.735,
        "first_only": 0.35,
        "every_2": 0.638,
    }
    assert round(table["every_2"]["f1_1"].value, 2) == 0.9
    asked = score_constants(episodes(("turn",), ("hit",), ("recolour",), ("leave",)), periods=())
    assert round(asked["always"]["f1_0"].value, 3) == 0.206
    assert asked["never"]["exact"].value == pytest.approx(0.3125)


def test_a_threshold_goes_from_silent_to_talkative():
    episodes = [Episode((), (1, 3), 4), Episode((), (), 2)]
    decisions = [[(0.9, True), (0.2, False), (0.8, True), (0.6, True)], [(0.7, True), (0.95, True)]]
    curve = threshold_curve(episodes, decisions, [0.0, 0.65, 0.75, 1.0])
    found = {
        threshold: [scores[name].value for name in ("recall_0", "precision_0", "silent", "exact")]
        for threshold, scores in curve.items()
    }
    assert found == {
        0.0: [1 / 2, 1.0, pytest.approx(5 / 6), 1 / 2],
        0.65: [1.0, 1.0, pytest.approx(4 / 6), 1.0],
        0.75: [1.0, pytest.approx(2 / 3), 3 / 6, 1 / 2],
        1.0: [1.0, pytest.approx(2 / 6), 0.0, 0.0],
    }
    with pytest.raises(ValueError, match="episode 1 has 2 frames and 1 decisions"):
        threshold_curve(episodes, [decisions[0], decisions[1][:1]], [0.5])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.booleans()), min_size=1, max_size=8))
def test_the_curve_is_monotone(drawn):
    episode = Episode((), tuple(frame for frame, (_, _, due) in enumerate(drawn) if due), len(drawn))
    decisions = [[(skip, likeliest) for skip, likeliest, _ in drawn]]
    curve = list(threshold_curve([episode], decisions, [0.0, 0.2, 0.5, 0.9, 1.0]).values())
    for lower, higher in itertools.pairwise(curve):
        assert higher["silent"].value <= lower["silent"].value
        assert higher["recall_0"].value >= lower["recall_0"].value


def turn(speaks, later="", right=0, words=4):
    flags = [tuple(letter == "x" for letter in letters) for letters in (speaks, later)]
    return LiveTurn(*flags, right, words)


@pytest.mark.parametrize(
    ("taken", "difference", "fluency"),
    [
        (turn("..x.."), -2, (5 - 2) / 9),
        (turn("..x.x", right=3), -2, (5 - 2) / 9),
        (turn("....x", right=3), 0, (5 + 3) / 9),
        (turn(".....", ".x.", right=3), 2, (5 - 1) / 9),
        (turn(".....", "..."), 3, (5 - 1) / 9),
        (turn(".....", right=2), 0, (5 + 2) / 9),
        (turn("x"), 0, 1 / 5),
    ],
)
def test_live_by_hand(taken, difference, fluency):
    assert frame_difference(taken) == difference
    assert live_fluency(taken) == pytest.approx(fluency)


def test_live_scores_are_means_of_means():
    samples = [[turn("..x.."), turn("....x", right=4)], [turn("...", "x.", words=3)]]
    found = values(live_scores(samples, fps=2.0))
    assert found == pytest.approx({"time_diff_s": (1.0 / 2 + 0.5) / 2, "fluency": ((3 / 9 + 1) / 2 + 2 / 6) / 2})
    table = live_constants(samples, fps=2.0, periods=(3,))
    assert {name: scores["time_diff_s"].value for name, scores in table.items()} == pytest.approx(
        {
            "never": ((0 + 0) / 2 + 2) / 2 / 2,
            "always": ((4 + 4) / 2 + 2) / 2 / 2,
            "every_3": ((2 + 2) / 2 + 0) / 2 / 2,
        }
    )


def test_how_long_live_waits():
    assert [live_patience(5, 3), live_patience(5, 9), live_patience(1, 9), live_patience(5, None)] == [3, 4, 0, 0]
    with pytest.raises(ValueError, match="a turn needs a frame"):
        LiveTurn((), (), 0, 1)
    with pytest.raises(ValueError, match="at most as many right words"):
        LiveTurn((True,), (), 3, 2)
