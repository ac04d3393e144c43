"""How long a run is: `config.epochs` in steps, and what to say of it at the start."""

import contextlib
import math
from collections.abc import Sequence

import numpy as np

from swjax.data.example import ExampleError
from swjax.data.pipeline_config import Batching, PipelineConfig
from swjax.data.sources import Source
from swjax.data.statistics import measure
from swjax.plain import JsonView
from swjax.streaming.tokens import Tokenizer
from swjax.training.sections import Config

SAMPLE = 256
"""Examples that are measured to know how many rows packing fills."""


def steps_of(
    epochs: float,
    sources: Sequence[Source],
    pipeline_config: PipelineConfig,
    tokenizer: Tokenizer,
    *,
    rows: int,
    recorded: JsonView | None = None,
) -> int:
    """The steps of a number of epochs, one at least.

    Where rows are packed, examples spread over the data are encoded to know how many fill a row, once a run.

    Args:
        epochs: passes over the data.
        sources: the training data.
        pipeline_config: how its examples become rows.
        tokenizer: the model's.
        rows: of a step, in all processes.
        recorded: the configuration that the run began with, if it is resumed.
    """
    if pipeline_config.batching != Batching.PACK:
        filled = float(_count(sources))
    elif recorded is not None and recorded.get("epochs"):
        return max(1, math.ceil(recorded["steps"] * epochs / recorded["epochs"]))
    else:
        filled = _count_packed(sources, pipeline_config, tokenizer)
    return max(1, math.ceil(epochs * filled / rows))


def _count_packed(sources: Sequence[Source], config: PipelineConfig, tokenizer: Tokenizer) -> float:
    """Rows that the examples of an epoch fill, by some of them."""
    count = _count(sources)
    firsts = np.cumsum([0, *(len(source.examples) for source in sources)])
    sample = []
    for number in np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(int)).tolist():
        source = int(np.searchsorted(firsts, number, side="right")) - 1
        with contextlib.suppress(ExampleError):  # a damaged record fills no row, and is skipped when its turn comes
            sample.append(sources[source].examples[number - int(firsts[source])])
    found = measure(sample, config, tokenizer)
    share = found.padded_share if found.packed_share is None else found.packed_share
    return found.column("tokens").sum() / (1 - share) / config.max_tokens * count / max(1, len(sample))


def describe_length(config: Config, sources: Sequence[Source]) -> str:
    """One line: examples, epochs, steps and the rows of a step.

    Args:
        config: from `set_length`.
        sources: its training data.
    """
    examples, rows = _count(sources), config.batch_size * config.accumulation
    epochs = config.steps * rows / examples
    passes = "epochs"
    if config.data.batching == "pack":
        epochs = config.epochs or epochs
        passes = "epochs of packed rows" if config.epochs else "epochs if a row held one example (rows are packed)"
    return (
        f"{examples:,} examples, {epochs:.3g} {passes}, {config.steps:,} steps of {rows} rows "
        f"({config.batch_size} x {config.accumulation} accumulated)"
    )


def changed_length(before: int, steps: int) -> str | None:
    """What to say of a run that is resumed with another number of steps; None where the number is the same."""
    if before == steps:
        return None
    return f"config.steps was {before}, is {steps}: from here on the learning rate is that of a run of {steps} steps"


def _count(sources: Sequence[Source]) -> int:
    return sum(len(source.examples) for source in sources)
