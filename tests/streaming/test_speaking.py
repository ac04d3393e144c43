"""Rules of speaking by what each is defined to do, moment by moment."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swjax.streaming import (
    SPEAKING,
    Answer,
    Moment,
    SourceFrame,
    SourceText,
    SpecialTokens,
    count_words,
    drop_ratio,
    schedule_answers,
    skip_is_unwanted,
    speaking_of,
    surprise,
)

MEASURED = {"skip_probability": 0.5, "skip_is_likeliest": True, "drop_ratio": 0.5, "surprise": 1.0}
MOMENTS = [Moment(item, float(item), **MEASURED) for item in range(8)]


def begins_at(text, moments=MOMENTS):
    """The items after which a rule begins an utterance of two words."""
    rule = speaking_of(text)
    counts = count_words(rule, moments, [2] * 99)
    assert set(counts.tolist()) <= {0, 2}
    return np.flatnonzero(counts).tolist()


def count_of(text, lengths, moments=MOMENTS):
    return count_words(speaking_of(text), moments, lengths).tolist()


def test_constants():
    assert begins_at("never") == []
    assert begins_at("always:most=2") == list(range(8))
    assert begins_at("timer:period=3,most=2") == [0, 3, 6]
    assert begins_at("timer:period=3,first=2,most=2") == [2, 5]


@given(st.integers(1, 4), st.integers(0, 40))
def test_wait_k_is_the_schedule_of_the_paper(k, length):
    counts = count_of(f"wait_k:k={k}", [length] if length else [])
    assert counts == [min(k, max(0, length - k * item)) for item in range(8)]


def test_an_utterance_is_finished_at_the_budget_of_each_item_and_another_waits_for_its_time():
    assert count_of("always:most=3", [5, 1, 1]) == [3, 2, 1, 1, 0, 0, 0, 0]
    assert count_of("timer:period=4,most=3", [7, 2]) == [3, 3, 1, 0, 2, 0, 0, 0]
    assert count_of("timer:period=2,most=9", [4, 4]) == [4, 0, 4, 0, 0, 0, 0, 0]


def test_decisions():
    """LIVE: speak if silence is below the threshold, or something else is likelier."""
    rule = speaking_of("decide:threshold=0.725")
    assert rule.speaks(Moment(3, 3.0, skip_probability=0.7, skip_is_likeliest=True))
    assert not rule.speaks(Moment(3, 3.0, skip_probability=0.73, skip_is_likeliest=True))
    assert rule.speaks(Moment(3, 3.0, skip_probability=0.8, skip_is_likeliest=False))
    assert not speaking_of("decide").speaks(Moment(3, 3.0, skip_probability=0.0, skip_is_likeliest=True))
    assert rule.speaks(Moment(3, 3.0, words=1, in_utterance=True)), "nothing is measured while it speaks"


@given(st.lists(st.floats(0, 1), min_size=8, max_size=8), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_threshold_speaks_wherever_a_lower_one_does(probabilities, low, high):
    low, high = sorted((low, high))
    moments = [
        moment._replace(skip_probability=p, skip_is_likeliest=p > 0.5)
        for moment, p in zip(MOMENTS, probabilities, strict=True)
    ]
    spoken = [set(begins_at(f"decide:threshold={bound!r},most=2", moments)) for bound in (low, high)]
    assert spoken[0] <= spoken[1]


@pytest.mark.parametrize("xp", [np, jnp])
def test_the_token_that_is_chosen_is_the_rule_s(xp):
    logits = np.random.default_rng(0).normal(0, 2, (200, 5)).astype(np.float32)
    probability = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    for threshold in (0.0, 0.3, 0.725, 2.0):
        rule = speaking_of(f"decide:threshold={threshold}")
        speaks = [
            rule.speaks(Moment(0, 0.0, skip_probability=float(one[2]), skip_is_likeliest=bool(one.argmax() == 2)))
            for one in probability
        ]
        skip, below = np.full(len(logits), 2), np.full(len(logits), threshold, np.float32)
        unwanted = np.asarray(skip_is_unwanted(xp.array(logits), skip, below, xp=xp))
        suppressed = np.where(unwanted, -np.inf, logits)
        np.testing.assert_array_equal(suppressed.argmax(axis=-1) != 2, speaks)
        np.testing.assert_array_equal(np.delete(suppressed, 2, axis=-1), np.delete(logits, 2, axis=-1))
        assert threshold > 1 or not all(speaks)


def test_the_drop_trigger_speaks_of_new_frames():
    ratios = [0.0, 0.9, 0.6, 0.59, 1.0, 0.2, 0.6, 0.6]
    moments = [moment._replace(drop_ratio=ratio) for moment, ratio in zip(MOMENTS, ratios, strict=True)]
    assert begins_at("drop_trigger:below=0.6,most=2", moments) == [0, 3, 5]


def test_verification_speaks_first_and_when_what_was_said_no_longer_fits():
    rises = [None, 1.0, 1.04, 1.041, 0.9, 2.0, 1.0, 1.0]
    moments = [moment._replace(surprise=rise) for moment, rise in zip(MOMENTS, rises, strict=True)]
    assert begins_at("verify:most=2", moments) == [0, 3, 5]
    assert surprise(np.array([0.1, 0.2, 0.3]), np.zeros(3)) == pytest.approx(1.221403, abs=1e-6)
    assert surprise(np.array([0.1, 0.2, 0.3]), np.array([0.3, 0.2, 0.1])) == pytest.approx(1.0)


@given(st.sampled_from(list(SPEAKING)), st.integers(0, 7))
def test_rules_know_no_future_and_ask_only_for_what_they_need(name, item):
    """After the first items a rule has said the same, whatever comes later."""
    rule = speaking_of(name)
    unknown = Moment(item, 0.0)
    needed = unknown._replace(**{field: MEASURED[field] for field in rule.needs})
    assert isinstance(rule.speaks(needed), bool)
    for field in rule.needs - {"surprise"}:
        with pytest.raises(ValueError, match=f"{field} must be measured before .* whether to speak after item {item}"):
            rule.speaks(needed._replace(**{field: None}))
    cut = [moment._replace(**dict.fromkeys(MEASURED, 0.0)) if moment.item > item else moment for moment in MOMENTS]
    lengths = [2, 5, 1, 3, 3]
    np.testing.assert_array_equal(
        count_words(rule, cut, lengths)[: item + 1], count_words(rule, MOMENTS, lengths)[: item + 1]
    )


def test_training_speaks_by_the_same_rule():
    special = SpecialTokens.qwen2_5_vl()
    sources = [SourceText((5, special.vision_start), is_item=False), *[SourceFrame(1, 1)] * 8]
    answers = [Answer(tuple(range(100, 109)))]
    counts = count_words(speaking_of("wait_k:k=2"), MOMENTS, [10])
    assert schedule_answers(sources, answers, counts.tolist(), special) == schedule_answers(
        sources, answers, 2, special
    )


@pytest.mark.parametrize("xp", [np, jnp])
def test_the_share_of_a_frame_that_says_nothing_new(xp):
    before = xp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    features = xp.array([[3.0, 0.0], [1.0, 1.0], [1.0, 2.0], [0.0, 0.0]])  # cosines 1, 0.71, 0.45, none
    assert float(drop_ratio(features, before, xp=xp)) == 0.5
    assert float(drop_ratio(features, before, xp=xp, different_below=0.4)) == 0.75
    assert float(drop_ratio(features, before, xp=xp, different_below=0.8)) == 0.25
    assert drop_ratio(features, None, xp=xp) == 0.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sometimes", r"unknown rule of speaking 'sometimes'; choose one of wait_k, always, never"),
        ("wait_k:k=0", "k of WaitK must be at least 1, got 0"),
        ("wait_k:k=two", "k of rule of speaking wait_k must be of type int, got 'two'"),
        ("wait_k:k=1,k=2", "'wait_k:k=1,k=2': k is given twice"),
        ("never:k=1", "never takes no numbers, got 'k=1'"),
        ("timer:period=0", "period of Timer must be at least 1, got 0"),
        ("decide:threshold=nan", "threshold of Decide must be at least 0, got nan"),
        ("decide:most=0", "most of Decide must be at least 1, got 0"),
        ("verify:factor=-1", "factor of Verify must be at least 0"),
        ("drop_trigger:below=inf", "below of DropTrigger must be at least 0, got inf"),
    ],
)
def test_impossible_rules(text, message):
    with pytest.raises(ValueError, match=message):
        speaking_of(text)


def test_a_rule_can_be_added(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Odd:
        most: int = 2
        needs = frozenset()

        def speaks(self, moment):
            return moment.item % 2 == 1 and moment.words < self.most

    monkeypatch.setitem(SPEAKING, "odd", Odd)
    assert count_of("odd:most=3", [99]) == [0, 3, 0, 3, 0, 3, 0, 3]
