"""What an implementation of span attention is, and how it becomes a differentiable function.

An implementation is a pair of functions, forward and backward, and this module holds the one differentiation rule for
all of them. Between the two passes it keeps the inputs, the output and one number a query and head (the log of its
softmax's denominator), so that memory is linear in length whatever the implementation; `reference`, which is dense, is
left to automatic differentiation and is no `Kernel`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend as jex
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import mlir
from jaxtyping import Array, Float

from swjax.streaming import KeySpans

EMPTY_LSE = 0.0
"""Log-sum-exp of a query that sees nothing. Zero, because exp(masked score - 0) is then zero in every backward pass."""

ATTENTION_OUT, ATTENTION_LSE = "attention_out", "attention_lse"
"""Names for policies of `jax.checkpoint`: with both kept, a backward pass does not run attention forward again."""

Forward = Callable[[Array, Array, Array, KeySpans], tuple[Array, Array]]
Backward = Callable[[Array, Array, Array, KeySpans, Array, Array, Array], tuple[Array, Array, Array]]


CacheAttention = Callable[[Array, Array, Array, Array, KeySpans], Array]
"""Attention to a cache: (q [B, T, N, H], keys [layers, B, K, S, H], values, layer int32[], spans) -> [B, T, N, H]."""


class Kernel(NamedTuple):
    """One implementation of span attention. Its functions are static keys: module-level ones, or cached.

    Attributes:
        forward: (q [B, T, N, H], k [B, S, K, H], v [B, S, K, H], spans int32[B, T]) -> (out [B, T, N, H] in q's dtype,
            lse float32[B, N, T]). Scores are scaled by H ** -0.5; lse is the log of the sum of exp(score) over the keys
            seen. An empty span gives zeros and `EMPTY_LSE`.
        backward: (q, k, v, spans, out, lse, dout) -> (dq, dk, dv), each in the shape and dtype of its input.
        platforms: JAX platforms that it can run on (`tpu`, `cuda`, `rocm`, `cpu`); empty for all of them. It may be
            traced on any, so whatever a platform lacks must show in lowering, not in tracing.
    """

    forward: Forward
    backward: Backward
    platforms: tuple[str, ...] = ()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
    kernel: Kernel, q: Float[Array, "B T N H"], k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], spans: KeySpans
) -> Float[Array, "B T N H"]:
    """Span attention by a kernel, differentiable in q, k and v."""
    return kernel.forward(q, k, v, spans)[0]


def _attend_forward(kernel: Kernel, q: Array, k: Array, v: Array, spans: KeySpans) -> tuple[Array, tuple[Any, ...]]:
    out, lse = kernel.forward(q, k, v, spans)
    out, lse = checkpoint_name(out, ATTENTION_OUT), checkpoint_name(lse, ATTENTION_LSE)
    return out, (q, k, v, spans, out, lse)


def _attend_backward(kernel: Kernel, residuals: tuple[Any, ...], dout: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, spans, out, lse = residuals
    return (*kernel.backward(q, k, v, spans, out, lse, dout), None)


attend.defvjp(_attend_forward, _attend_backward)


def by_platform(choices: Mapping[str, Kernel], default: Kernel) -> Kernel:
    """A kernel that becomes one of several when it is lowered, by the platform that it is compiled for.

    Not when it is traced: a program may be compiled ahead of time for another machine than this one.
    """
    return _by_platform(tuple(sorted(choices.items())), default)


@functools.cache
def _by_platform(choices: tuple[tuple[str, Kernel], ...], default: Kernel) -> Kernel:
    def forward(*args: Any) -> Any:
        return jax.lax.platform_dependent(*args, default=default.forward, **{p: k.forward for p, k in choices})

    def backward(*args: Any) -> Any:
        return jax.lax.platform_dependent(*args, default=default.backward, **{p: k.backward for p, k in choices})

    return Kernel(forward, backward)


@functools.cache
def refusing_elsewhere(name: str, kernel: Kernel) -> Kernel:
    """A kernel that raises a ValueError when it is lowered for a platform that it cannot run on."""
    if not kernel.platforms:
        return kernel

    reason = (
        f"attention implementation {name!r} runs on {' and '.join(kernel.platforms)}, and this is compiled for "
        "{platform}; choose 'auto' or another implementation"
    )

    def refusing(pass_: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: refuse(reason, jax.eval_shape(pass_, *args))

    unfit = Kernel(refusing(kernel.forward), refusing(kernel.backward))
    return by_platform(dict.fromkeys(kernel.platforms, kernel), unfit)


def refuse(reason: str, shapes: Sequence[jax.ShapeDtypeStruct]) -> tuple[Array, ...]:
    """Arrays of which no program can be made: lowering it raises a ValueError. Tracing it does not.

    Args:
        reason: message of the error, in which `{platform}` stands for what it is lowered for.
        shapes: of the arrays.
    """
    return tuple(_refuse_p.bind(reason=reason, avals=tuple((s.shape, jnp.dtype(s.dtype)) for s in shapes)))


def _refuse_lowering(ctx: mlir.LoweringRuleContext, *, reason: str, avals: Any) -> Any:
    raise ValueError(reason.format(platform=", ".join(ctx.module_context.platforms)))


_refuse_p = jex.core.Primitive("refuse")
_refuse_p.multiple_results = True


@_refuse_p.def_impl
def _refuse_now(*, reason: str, avals: Any) -> Any:
    raise ValueError(reason.format(platform=jax.default_backend()))


@_refuse_p.def_abstract_eval
def _refuse_shapes(*, reason: str, avals: Any) -> list[Any]:
    return [jax.core.ShapedArray(shape, dtype) for shape, dtype in avals]


mlir.register_lowering(_refuse_p, _refuse_lowering)
