"""AdamW with a warmed-up cosine, and the choice of which parameters train."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import optax
from jaxtyping import DTypeLike

from swjax.models.parameters import Parameters, match_paths
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
    no_decay: Sequence[str] = (),
    groups: Sequence[tuple[str, float]] = (),
) -> optax.GradientTransformation:
    """AdamW behind a clip of the global gradient norm.

    Args:
        schedule: step -> learning rate.
        clip_norm: largest global norm of the gradient.
        weight_decay: of all parameters but norm scales, biases and those of `no_decay`; times the learning rate.
        b1, b2: decay of the moments.
        no_decay: regular expressions; parameters whose path one matches do not decay.
        groups: (regular expression, factor); the learning rate of parameters whose path it matches is multiplied by the
            factor, that of the first group where several match.

    Raises:
        ValueError: from `init`, if an expression is not valid or matches no parameter that trains.
    """
    factors = [
        optax.masked(optax.scale(factor), functools.partial(_in_group, number=number, groups=groups))
        for number, (_, factor) in enumerate(groups)
    ]
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        adamw(
            schedule,
            b1=b1,
            b2=b2,
            weight_decay=weight_decay,
            mask=functools.partial(_decays, no_decay=no_decay),
            moments_dtype=moments_dtype,
        ),
        # An update is proportional to its learning rate, the decay included.
        *factors,
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
    is_frozen = {path for pattern in frozen for path in match_paths(pattern, parameters, key="frozen")}
    if len(is_frozen) == len(parameters):
        raise ValueError(f"config.frozen: {tuple(frozen)!r} leaves no parameter to train")
    trainable = {path: leaf for path, leaf in parameters.items() if path not in is_frozen}
    return trainable, {path: leaf for path, leaf in parameters.items() if path in is_frozen}


def _decays(parameters: Mapping[str, Any], no_decay: Sequence[str]) -> dict[str, bool]:
    """Norm scales spell one axis (stacked layers have one more, which no name spells), and biases say what they are."""
    spared = {path for pattern in no_decay for path in match_paths(pattern, parameters, key="optimizer.no_decay")}
    return {
        path: len(path.rsplit("_", 1)[-1]) > 1 and "_bias_" not in path and path not in spared for path in parameters
    }


def _in_group(parameters: Mapping[str, Any], number: int, groups: Sequence[tuple[str, float]]) -> dict[str, bool]:
    matched = [match_paths(pattern, parameters, key="optimizer.groups") for pattern, _ in groups[: number + 1]]
    mine = matched[number].difference(*matched[:number])
    return {path: path in mine for path in parameters}
