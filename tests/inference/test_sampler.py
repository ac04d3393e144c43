"""Sampling against transformers' logits processors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from swjax.inference.sampler import Sampling, SamplingRows, keep_likely, mark_said, penalize, sample
from swjax.inference.voice import UNDECIDED, Deciding

CHOICES = (
    Sampling(temperature=0.7, top_k=5, top_p=0.8, repetition_penalty=1.15),
    Sampling(temperature=1.0, top_p=0.3),
    Sampling(temperature=2.0, top_k=1, repetition_penalty=0.8),
    Sampling(temperature=1.5, top_k=500, top_p=0.95, repetition_penalty=3.0),
    Sampling(temperature=0.1),
)


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(CHOICES), 40)).astype(np.float32) * 2


def by_transformers(logits: np.ndarray, said: list[int], choice: Sampling) -> np.ndarray:
    scores, ids = torch.tensor(logits)[None], torch.tensor([said], dtype=torch.long)
    processors = [TemperatureLogitsWarper(choice.temperature)]
    if choice.repetition_penalty != 1:
        processors.insert(0, RepetitionPenaltyLogitsProcessor(choice.repetition_penalty))
    processors += [TopKLogitsWarper(choice.top_k)] if choice.top_k else []
    processors += [TopPLogitsWarper(choice.top_p)] if choice.top_p < 1 else []
    for processor in processors:
        scores = processor(ids, scores)
    return scores[0].numpy()


def test_scores_equal_those_of_transformers(logits):
    said = np.zeros(logits.shape, bool)
    spoken = [[1, 2, 3, 1], [4], [0, 5], [], list(range(20))]
    for row, tokens in enumerate(spoken):
        said[row, tokens] = True
    rows = SamplingRows.of(CHOICES, [len(tokens) for tokens in spoken])
    penalized = penalize(jnp.asarray(logits), jnp.asarray(said), rows.repetition_penalty)
    kept = np.asarray(keep_likely(penalized / rows.temperature[:, None], rows.top_k, rows.top_p))
    for row, (tokens, choice) in enumerate(zip(spoken, CHOICES, strict=True)):
        expected = by_transformers(logits[row], tokens, choice)
        np.testing.assert_array_equal(np.isfinite(kept[row]), np.isfinite(expected))
        np.testing.assert_allclose(kept[row], expected, rtol=1e-5)


def test_tokens_come_as_often_as_they_are_likely():
    """4,096 rows of the same scores: frequencies within five standard errors of the probabilities."""
    count = 4096
    logits = jnp.asarray([2.0, 1.0, 0.0, -1.0, -9.0])
    rows = SamplingRows.of([Sampling(temperature=2.0, top_k=3, seed=seed) for seed in range(count)], [0] * count)
    drawn = np.asarray(sample(jnp.tile(logits, (count, 1)), jnp.zeros((count, 5), bool), rows))
    chances = np.asarray(jax.nn.softmax(jnp.asarray([1.0, 0.5, 0.0])))
    found = np.bincount(drawn, minlength=5) / count
    assert found[3:].sum() == 0
    assert (np.abs(found[:3] - chances) < 5 * np.sqrt(chances * (1 - chances) / count)).all()


def test_a_row_does_not_depend_on_those_beside_it(logits):
    said = jnp.zeros(logits.shape, bool)
    together = sample(jnp.asarray(logits), said, SamplingRows.of(CHOICES, [3] * len(CHOICES)))
    for row, choice in enumerate(CHOICES):
        alone = sample(jnp.asarray(logits[row : row + 1]), said[:1], SamplingRows.of([choice], [3]))
        assert int(alone[0]) == int(together[row])


def test_each_token_and_each_seed_draws_anew():
    flat = jnp.zeros((64, 1000))
    said = jnp.zeros(flat.shape, bool)
    warm = Sampling(temperature=1.0)
    by_token = np.asarray(sample(flat, said, SamplingRows.of([warm] * 64, range(64))))
    by_seed = np.asarray(
        sample(flat, said, SamplingRows.of([Sampling(temperature=1.0, seed=seed) for seed in range(64)], [0] * 64))
    )
    again = np.asarray(sample(flat, said, SamplingRows.of([warm] * 64, range(64))))
    assert len(set(by_token)) > 50
    assert len(set(by_seed)) > 50
    np.testing.assert_array_equal(by_token, again)


def test_greedy_takes_the_likeliest_and_a_penalty_what_has_not_been_said():
    logits = jnp.asarray([[3.0, 2.9, -1.0], [3.0, 2.9, -1.0], [-2.0, -1.0, -1.1]])
    said = jnp.asarray([[True, False, False], [True, False, False], [False, True, False]])
    rows = SamplingRows.of([Sampling(), Sampling(repetition_penalty=1.15), Sampling(repetition_penalty=1.15)], [1] * 3)
    assert sample(logits, said, rows).tolist() == [0, 1, 2]


def test_only_rows_that_speak_are_noted():
    speaks, chosen = jnp.asarray([True, False, True]), jnp.asarray([1, 2, 3])
    rows = SamplingRows.of([Sampling()] * 3, [0] * 3)
    said = mark_said(jnp.zeros((3, 4), bool), chosen, speaks, rows)
    assert np.argwhere(np.asarray(said)).tolist() == [[0, 1], [2, 3]]
    rows = SamplingRows.of([Sampling()] * 3, [0] * 3, [UNDECIDED, UNDECIDED, Deciding(skip=0, end=3)])
    said = mark_said(jnp.zeros((3, 4), bool), chosen, speaks, rows)
    assert np.argwhere(np.asarray(said)).tolist() == [[0, 1]], "an end of thought is no word"


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}, {"repetition_penalty": 0}]
)
def test_wrong_choices_are_refused(wrong):
    with pytest.raises(ValueError, match="sampling needs"):
        Sampling(**wrong)


def test_seeds_are_of_32_bits():
    with pytest.raises(ValueError, match="seed"):
        Sampling(seed=2**32)
