"""What a layer keeps for its backward pass, and what it computes again there, by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import jax
from jax.ad_checkpoint import checkpoint_name

from swjax.attention import ATTENTION_LSE, ATTENTION_OUT

Carry = TypeVar("Carry")

PROJECTION = "projection"
"""Outputs of the products with weights, but for those in the width of MLPs."""

WIDE_PROJECTION = "wide_projection"
"""Outputs of those, several times as large."""

LAYER_INPUT = "layer_input"
"""What goes into a layer."""

_policies = jax.checkpoint_policies

REMAT: Mapping[str, Callable[..., Any] | None] = MappingProxyType(
    {
        "nothing": None,
        "minimal": _policies.save_only_these_names(PROJECTION, WIDE_PROJECTION, ATTENTION_OUT, ATTENTION_LSE),
        "attention": _policies.save_only_these_names(PROJECTION, ATTENTION_OUT, ATTENTION_LSE),
        "full": _policies.nothing_saveable,
        "offload": _policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[LAYER_INPUT, ATTENTION_OUT, ATTENTION_LSE],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }
)
"""Name -> policy of `jax.checkpoint` around a layer; what is computed again in the backward pass:

`nothing`; `minimal`: norms, rotary and activations, but neither products with weights nor attention; `attention`: those
and the MLP, but not attention and its projections, which are small for what they cost; `full`: the whole layer, of
which only the input is kept; `offload`: all but attention, and what is kept lies in the host's memory.
"""


def rematerialized(step: Callable[..., Carry], remat: str) -> Callable[..., Carry]:
    """A layer's step (x, layer) -> x that keeps for its backward pass what a policy says.

    For the body of a loop: where layers are unrolled, the compiler would find what is computed twice and keep it.

    Args:
        step: the step; x is one array.
        remat: one of `REMAT`.

    Raises:
        ValueError: there is no such policy.
    """
    if remat not in REMAT:
        raise ValueError(f"unknown rematerialisation {remat!r}; choose one of: {', '.join(REMAT)}")
    policy = REMAT[remat]
    if policy is None:
        return step

    def named(x: Carry, layer: object) -> Carry:
        return step(checkpoint_name(x, LAYER_INPUT), layer)

    return jax.checkpoint(named, policy=policy, prevent_cse=False)
