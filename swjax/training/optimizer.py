"""Optimizers and schedules by name, and the choice of which parameters train."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import optax
from jaxtyping import Array, DTypeLike

from swjax.models.adapters import linear_axes
from swjax.models.parameters import Leaves, Parameters, match_paths
from swjax.training.moments import adamw


@dataclass(frozen=True)
class Rule:
    """What a rule of `OPTIMIZERS` is made of.

    Attributes:
        schedule: step -> learning rate.
        b1, b2: decay of the moments.
        weight_decay: of the parameters that `mask` chooses, times the learning rate.
        mask: parameters by path -> which of them decay.
        moments_dtype: of AdamW's moments.
    """

    schedule: optax.Schedule
    b1: float
    b2: float
    weight_decay: float
    mask: Callable[[Leaves], dict[str, bool]]
    moments_dtype: DTypeLike = "float32"


def _adamw(rule: Rule) -> optax.GradientTransformation:
    return adamw(
        rule.schedule,
        b1=rule.b1,
        b2=rule.b2,
        weight_decay=rule.weight_decay,
        mask=rule.mask,
        moments_dtype=rule.moments_dtype,
    )


def _lion(rule: Rule) -> optax.GradientTransformation:
    return optax.lion(rule.schedule, b1=rule.b1, b2=rule.b2, weight_decay=rule.weight_decay, mask=rule.mask)


def _adafactor(rule: Rule) -> optax.GradientTransformation:
    # Updates of the size of AdamW's, so that its learning rates fit.
    return _decayed(optax.adafactor(None, multiply_by_parameter_scale=False), rule)


def _muon(rule: Rule) -> optax.GradientTransformation:
    """Muon for the weights of linear layers; AdamW with Nesterov's momentum for embedding, head, norms and biases."""
    scaled = optax.contrib.muon(
        1.0,
        beta=rule.b1,
        adam_b1=rule.b1,
        adam_b2=rule.b2,
        consistent_rms=0.2,  # of AdamW's updates, so that its learning rates fit (https://arxiv.org/abs/2502.16982)
        muon_weight_dimension_numbers=_matrices,
    )
    return _decayed(scaled, rule)


def _decayed(descent: optax.GradientTransformation, rule: Rule) -> optax.GradientTransformation:
    """A rule at a learning rate of 1, with weight decay and schedule behind it."""
    return optax.chain(
        descent,
        optax.scale(-1.0),
        optax.add_decayed_weights(rule.weight_decay, rule.mask),
        optax.scale_by_learning_rate(rule.schedule),
    )


OPTIMIZERS: dict[str, Callable[[Rule], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
}
"""By the name in `config.optimizer.name`; another is added here or from anywhere else."""


def _constant(peak: float, steps: int, final: float, decay: float) -> optax.Schedule:
    return optax.constant_schedule(peak)


def _linear(peak: float, steps: int, final: float, decay: float) -> optax.Schedule:
    return optax.linear_schedule(peak, peak * final, steps)


def _cosine(peak: float, steps: int, final: float, decay: float) -> optax.Schedule:
    return optax.cosine_decay_schedule(peak, steps, alpha=final)


def _wsd(peak: float, steps: int, final: float, decay: float) -> optax.Schedule:
    """Stable, then a linear fall over the last part of the steps (https://arxiv.org/abs/2404.06395)."""
    falling = max(1, round(decay * steps))
    return optax.join_schedules(
        [optax.constant_schedule(peak), optax.linear_schedule(peak, peak * final, falling)], [steps - falling]
    )


SCHEDULES: dict[str, Callable[[float, int, float, float], optax.Schedule]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": _constant,
    "wsd": _wsd,
}
"""By the name in `config.optimizer.schedule`: (peak, steps, final part, falling part) -> step -> learning rate. Another
is added here or from anywhere else."""


def learning_rate_schedule(
    learning_rate: float,
    *,
    steps: int,
    warmup_fraction: float,
    kind: str = "cosine",
    final_fraction: float = 0.0,
    decay_fraction: float = 0.1,
) -> optax.Schedule:
    """Linear warm-up from 0 over the first part of the steps, then a schedule down to a part of the peak at the last.

    Args:
        learning_rate: the peak.
        steps: optimizer steps of the whole run.
        warmup_fraction: part of the steps spent on the warm-up (the paper: 0.03), rounded up to whole steps.
        kind: what follows, a name of `SCHEDULES`.
        final_fraction: what is left at the last step, as a part of the peak.
        decay_fraction: part of the steps in which `wsd` falls.
    """
    warmup = min(math.ceil(warmup_fraction * steps), steps - 1)
    after = SCHEDULES[kind](learning_rate, steps - warmup, final_fraction, decay_fraction)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup), after], [warmup])


def make_optimizer(
    schedule: optax.Schedule,
    *,
    clip_norm: float,
    weight_decay: float,
    b1: float,
    b2: float,
    name: str = "adamw",
    moments_dtype: DTypeLike = "float32",
    no_decay: Sequence[str] = (),
    groups: Sequence[tuple[str, float]] = (),
    frozen_layers: Sequence[int] = (),
) -> optax.GradientTransformation:
    """An optimizer behind a clip of the global gradient norm.

    Args:
        schedule: step -> learning rate.
        clip_norm: largest global norm of the gradient; 0 clips nothing.
        weight_decay: of all parameters but norm scales, biases and those of `no_decay`; times the learning rate.
        b1, b2: decay of the moments.
        name: of the rule, in `OPTIMIZERS`.
        moments_dtype: of AdamW's moments.
        no_decay: regular expressions; parameters whose path one matches do not decay.
        groups: (regular expression, factor); the learning rate of parameters whose path it matches is multiplied by the
            factor, that of the first group where several match.
        frozen_layers: numbers of the decoder's layers that stay as they are.

    Raises:
        ValueError: from `init`, if an expression is not valid or matches no parameter that trains.
    """
    factors = [
        optax.masked(optax.scale(factor), functools.partial(_in_group, number=number, groups=groups))
        for number, (_, factor) in enumerate(groups)
    ]
    rule = Rule(schedule, b1, b2, weight_decay, functools.partial(_decays, no_decay=no_decay), moments_dtype)
    return optax.chain(
        *([optax.clip_by_global_norm(clip_norm)] if clip_norm else []),
        OPTIMIZERS[name](rule),
        # An update is proportional to its learning rate, the decay included.
        *factors,
        *([_leave_layers(frozen_layers)] if frozen_layers else []),
    )


def split_frozen(parameters: Leaves, frozen: Sequence[str]) -> tuple[Parameters, Parameters]:
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


def _decays(parameters: Leaves, no_decay: Sequence[str]) -> dict[str, bool]:
    """All but norm scales, which spell one axis (stacked layers have one not spelled), biases and magnitudes."""
    spared = {path for pattern in no_decay for path in match_paths(pattern, parameters, key="optimizer.no_decay")}
    return {
        path: len(path.rsplit("_", 1)[-1]) > 1
        and path not in spared
        and not any(name in path for name in ("_bias_", "_lora_m_"))
        for path in parameters
    }


def _in_group(parameters: Leaves, number: int, groups: Sequence[tuple[str, float]]) -> dict[str, bool]:
    matched = [match_paths(pattern, parameters, key="optimizer.groups") for pattern, _ in groups[: number + 1]]
    mine = matched[number].difference(*matched[:number])
    return {path: path in mine for path in parameters}


_LAYERS = "decoder/layers/"


def _leave_layers(numbers: Sequence[int]) -> optax.GradientTransformation:
    """No updates for some of the decoder's layers, which are stacked along the first axis of their parameters."""

    def leave(path: str, update: Array) -> Array:
        if not path.startswith(_LAYERS):
            return update
        trains = jnp.ones(update.shape[0], update.dtype).at[jnp.asarray(numbers)].set(0)
        return update * trains.reshape(-1, *([1] * (update.ndim - 1)))

    return optax.stateless(lambda updates, _: {path: leave(path, update) for path, update in updates.items()})


def _matrices(parameters: Leaves) -> Parameters:
    """What Muon makes orthogonal: the weights of linear layers and adapters, the axes of each side taken together."""
    return {path: _sides(path, leaf) for path, leaf in parameters.items()}


def _sides(path: str, leaf: Array) -> optax.contrib.MuonDimensionNumbers | None:
    axes = linear_axes(path.replace("_lora_a_", "_weight_").replace("_lora_b_", "_weight_"))
    if axes is None or path.startswith(("decoder/head", "decoder/embedding")):
        return None
    inputs, outputs = (len(letters) for letters in axes)
    first = leaf.ndim - inputs - outputs
    return optax.contrib.MuonDimensionNumbers(
        tuple(range(first, first + inputs)), tuple(range(first + inputs, leaf.ndim))
    )
