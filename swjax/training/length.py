"""How long a run is: `config.epochs` in steps, and what to say of it at the start."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from swjax.data.sources import Source


def set_length(config: ConfigDict, sources: Sequence[Source]) -> ConfigDict:
    """A copy of a configuration whose `steps` are those of its `epochs`, if it has any; without references.

    Args:
        config: the run's.
        sources: its training data.
    """
    config = config.copy_and_resolve_references()
    if config.epochs:
        rows = config.batch_size * config.accumulation
        config.steps = max(1, math.ceil(config.epochs * _count(sources) / rows))
    return config


def describe_length(config: ConfigDict, sources: Sequence[Source]) -> str:
    """One line: examples, epochs, steps and the rows of a step.

    Args:
        config: from `set_length`.
        sources: its training data.
    """
    examples, rows = _count(sources), config.batch_size * config.accumulation
    epochs = config.steps * rows / examples
    passes = "epochs" if config.data.batching != "pack" else "epochs if a row held one example (rows are packed)"
    return (
        f"{examples:,} examples, {epochs:.3g} {passes}, {config.steps:,} steps of {rows} rows "
        f"({config.batch_size} x {config.accumulation} accumulated)"
    )


def changed_length(recorded: Mapping[str, Any], config: ConfigDict) -> str | None:
    """What to say of a run that is resumed with another number of steps; None where the number is the same."""
    before = recorded["steps"]
    if before == config.steps:
        return None
    return (
        f"config.steps was {before}, is {config.steps}: from here on the learning rate is that of a run of "
        f"{config.steps} steps"
    )


def _count(sources: Sequence[Source]) -> int:
    return sum(len(source.examples) for source in sources)
