"""Confidence intervals by the bootstrap, over videos."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Score:
    """A score of a set of videos.

    Attributes:
        value: the score.
        low, high: its 95 % percentile interval under resampling of the videos; both are the value if there is but one.
    """

    value: float
    low: float
    high: float


def bootstrap(
    statistics: Float[np.ndarray, "videos S"],
    combine: Callable[[Float[np.ndarray, "S"]], float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Score:
    """Score of a set of videos with its interval.

    The score must depend on the videos by sums alone, as a mean does (sum and count) and corpus BLEU (counts of
    n-grams): then a resample costs one weighted sum.

    Args:
        statistics: what each video adds to the sums.
        combine: the score, from the sums.
        resamples: how many sets of videos are drawn, with replacement.
        seed: of the draws; the same seed draws the same videos whatever the score, so that scores are paired.

    Raises:
        ValueError: if there are no videos.
    """
    statistics = np.asarray(statistics, np.float64)
    videos = len(statistics)
    if not videos:
        raise ValueError("there is nothing to score: no videos")
    drawn = np.random.default_rng(seed).multinomial(videos, np.full(videos, 1 / videos), resamples)
    value = combine(statistics.sum(0))
    if videos == 1:
        return Score(value, value, value)
    edge = (1 - LEVEL) / 2
    low, high = np.quantile([combine(sums) for sums in drawn @ statistics], [edge, 1 - edge])
    return Score(value, float(low), float(high))


Values = Sequence[float] | Float[np.ndarray, "videos"]


def mean_score(values: Values, *, seed: int = 0, resamples: int = RESAMPLES) -> Score:
    """Mean over videos with its interval.

    Args:
        values: one for each video.
        seed, resamples: of the bootstrap.
    """
    parts = np.asarray(values, np.float64)
    return ratio_score(parts, np.ones_like(parts), seed=seed, resamples=resamples)


def ratio_score(parts: Values, wholes: Values, *, seed: int = 0, resamples: int = RESAMPLES) -> Score:
    """Sum of the parts over the sum of the wholes (0 if the wholes are nothing), with its interval.

    Args:
        parts, wholes: one for each video.
        seed, resamples: of the bootstrap.
    """
    statistics = np.stack([np.asarray(parts, np.float64), np.asarray(wholes, np.float64)], axis=1)
    return bootstrap(
        statistics, lambda sums: float(sums[0] / sums[1]) if sums[1] else 0.0, seed=seed, resamples=resamples
    )
