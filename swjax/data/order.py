"""Which example comes when: several data sets mixed by weight, shuffled anew each epoch, or each once in order."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import grain
import numpy as np

from swjax.data.example import VideoExample


@dataclass(frozen=True)
class Mixture:
    """Several data sets and how often each is drawn from.

    Attributes:
        sets: the examples of each, with random access.
        weights: share of each in the training stream, relative to the sum.
    """

    sets: tuple[Sequence[VideoExample], ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.sets) != len(self.weights) or not self.sets:
            raise ValueError(f"each data set needs a weight, got {len(self.sets)} sets and weights {self.weights}")
        if not all(math.isfinite(weight) and weight > 0 for weight in self.weights):
            raise ValueError(f"weights of data sets must be above 0, got {self.weights}")
        for number, examples in enumerate(self.sets):
            if not len(examples):
                raise ValueError(f"there are no examples to make batches of in data set {number}")
            if isinstance(examples, tuple | list) and len({example.key for example in examples}) < len(examples):
                raise ValueError("two examples share a key; every key must be unique")


class Numbered(NamedTuple):
    """Which example comes, and in which epoch of its data set; `example` is -1 for a row that only fills a batch."""

    data_set: int
    example: int
    epoch: int


def training_order(mixture: Mixture, seed: int) -> grain.MapDataset[Numbered]:
    """Numbers of examples without end, in a new order each epoch.

    Args:
        mixture: data sets and how often each is drawn from.
        seed: of the order.
    """

    def numbered(position: int, example: int, *, data_set: int, size: int) -> Numbered:
        return Numbered(data_set, int(example), position // size)

    streams = [
        grain.MapDataset.range(len(examples))
        .shuffle(seed=seed + number)
        .repeat()
        .map_with_index(functools.partial(numbered, data_set=number, size=len(examples)))
        for number, examples in enumerate(mixture.sets)
    ]
    return streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, mixture.weights)


def evaluation_order(mixture: Mixture, multiple: int) -> grain.MapDataset[Numbered]:
    """Numbers of all examples once, in order, filled up to a multiple.

    Args:
        mixture: data sets.
        multiple: what the count becomes a multiple of; numbers of -1 fill it up.
    """
    bounds = np.cumsum([len(examples) for examples in mixture.sets])

    def numbered(position: int) -> Numbered:
        if position >= bounds[-1]:
            return Numbered(0, -1, 0)
        data_set = int(np.searchsorted(bounds, position, side="right"))
        return Numbered(data_set, int(position - bounds[data_set] + len(mixture.sets[data_set])), 0)

    return grain.MapDataset.range(math.ceil(bounds[-1] / multiple) * multiple).map(numbered)
