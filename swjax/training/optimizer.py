"""AdamW with a warmed-up cosine, and the choice of which parameters train."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import optax
from jaxtyping import DTypeLike

from swjax.conversion.parameters import Parameters
from swjax.training.moments import adamw


def learning_rate_schedule(learning_rate: float, *, steps: int, warmup_fraction: float) -> optax.Schedule:
    """Linear warm-up from 0 over the first part of the steps, then a cosine down to 0 at the last.

    Args:
        learning_rate: the peak.
        steps: optimizer steps of the whole run.
        warmup_fraction: part of the steps spent on the warm-up (the paper: 0.03), rounded up to whole steps.
    """
    warmup = min(math.ceil(warmup_fraction * steps), steps - 1)
    return optax.warmup_cosine_decay_schedule(0.0 if warmup else learning_rate, learning_rate, warmup, steps)


def make_optimizer(
    schedule: optax.Schedule,
    *,
    clip_norm: float,
    weight_decay: float,
    b1: float,
    b2: float,
    moments_dtype: DTypeLike = "float32",
) -> optax.GradientTransformation:
    """AdamW behind a clip of the global gradient norm. Norm scales and biases do not decay."""
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=_decays, moments_dtype=moments_dtype),
    )


def split_frozen(parameters: Mapping[str, Any], frozen: Sequence[str]) -> tuple[Parameters, Parameters]:
    """Divides parameters into those that train and those that do not.

    Args:
        parameters: path -> anything.
        frozen: regular expressions; a parameter whose path one of them matches from the path's start is frozen.
            `visual/(?!merger)`, the paper's choice, freezes the vision tower but for its merger.

    Returns:
        Trainable and frozen parameters.

    Raises:
        ValueError: an expression is not valid or matches no parameter, or nothing is left to train.
    """
    is_frozen = set()
    for pattern in frozen:
        try:
            matched = {path for path in parameters if re.match(pattern, path)}
        except re.error as error:
            raise ValueError(f"config.frozen: {pattern!r} is not a regular expression: {error}") from error
        if not matched:
            groups = ", ".join(sorted({"/".join(path.split("/")[:2]) for path in parameters}))
            raise ValueError(f"config.frozen: {pattern!r} matches no parameter; parameters begin with {groups}")
        is_frozen |= matched
    if len(is_frozen) == len(parameters):
        raise ValueError(f"config.frozen: {tuple(frozen)!r} leaves no parameter to train")
    trainable = {path: leaf for path, leaf in parameters.items() if path not in is_frozen}
    return trainable, {path: leaf for path, leaf in parameters.items() if path in is_frozen}


def _decays(parameters: Mapping[str, Any]) -> dict[str, bool]:
    """Norm scales spell one axis (stacked layers have one more, which no name spells), and biases say what they are."""
    return {path: len(path.rsplit("_", 1)[-1]) > 1 and "_bias_" not in path for path in parameters}
