"""What an implementation of span attention is, and how it becomes a differentiable function.

An implementation is a `Kernel`: forward, backward and attention to a cache, and a row of `swjax.attention.KERNELS`.
This module holds the one differentiation rule for all of them. Between the two passes it keeps the inputs, the output
and one number a query and head (the log of its softmax's denominator), so that memory is linear in length whatever the
implementation; one without a backward pass of its own, as `reference`, is left to automatic differentiation.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.extend as jex
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import mlir
from jaxtyping import Array, DTypeLike, Float

from swjax.streaming import KeySpans

EMPTY_LSE = 0.0
"""Log-sum-exp of a query that sees nothing. Zero, because exp(masked score - 0) is then zero in every backward pass."""

ATTENTION_OUT, ATTENTION_LSE = "attention_out", "attention_lse"
"""Names for policies of `jax.checkpoint`: with both kept, a backward pass does not run attention forward again."""

Forward = Callable[[Array, Array, Array, KeySpans], tuple[Array, Any]]
Backward = Callable[[Array, Array, Array, KeySpans, Array, Array, Array], tuple[Array, Array, Array]]


Avals = Sequence[tuple[tuple[int, ...], DTypeLike]]
"""Shapes and dtypes."""

Residuals = tuple[Array, Array, Array, KeySpans, Array, Array]
"""q, k, v, spans, out and lse."""

CacheAttention = Callable[[Array, Array, Array, Array, KeySpans], Array]
"""Attention to a cache: (q [B, T, N, H], keys [layers, B, K, S, H], values, layer int32[], spans) -> [B, T, N, H]."""


class Kernel(NamedTuple):
    """One implementation of span attention. Its functions are static keys: module-level ones, or cached.

    Attributes:
        forward: (q [B, T, N, H], k [B, S, K, H], v [B, S, K, H], spans int32[B, T]) -> (out [B, T, N, H] in q's dtype,
            lse float32[B, N, T]). Scores are scaled by H ** -0.5; lse is the log of the sum of exp(score) over the keys
            seen. An empty span gives zeros and `EMPTY_LSE`.
        backward: (q, k, v, spans, out, lse, dout) -> (dq, dk, dv), each in the shape and dtype of its input. None if
            JAX is to differentiate `forward`, whose lse may then be None; such a kernel is not sharded by hand.
        cache: attention to one layer of a cache, which is read where it lies; forward only.
        platforms: JAX platforms that it can run on (`tpu`, `cuda`, `rocm`, `cpu`); empty for all of them. It may be
            traced on any, so whatever a platform lacks must show in lowering, not in tracing.
    """

    forward: Forward
    backward: Backward | None
    cache: CacheAttention
    platforms: tuple[str, ...] = ()


def attend(
    kernel: Kernel, q: Float[Array, "B T N H"], k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], spans: KeySpans
) -> Float[Array, "B T N H"]:
    """Span attention by a kernel, differentiable in q, k and v.

    Args:
        kernel: the implementation.
        q: queries. N must be a multiple of K.
        k, v: keys and values.
        spans: int32[B, T] each.
    """
    return kernel.forward(q, k, v, spans)[0] if kernel.backward is None else _attend(kernel, q, k, v, spans)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(kernel: Kernel, q: Array, k: Array, v: Array, spans: KeySpans) -> Array:
    return kernel.forward(q, k, v, spans)[0]


def _attend_forward(kernel: Kernel, q: Array, k: Array, v: Array, spans: KeySpans) -> tuple[Array, Residuals]:
    out, lse = kernel.forward(q, k, v, spans)
    # As bits: of floats that are kept and used, too, jax.checkpoint makes a copy rounded to what they are.
    kept = checkpoint_name(jax.lax.bitcast_convert_type(out, f"int{8 * out.dtype.itemsize}"), ATTENTION_OUT)
    out, lse = jax.lax.bitcast_convert_type(kept, out.dtype), checkpoint_name(lse, ATTENTION_LSE)
    return out, (q, k, v, spans, out, lse)


def _attend_backward(kernel: Kernel, residuals: Residuals, dout: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, spans, out, lse = residuals
    assert kernel.backward is not None  # or JAX would differentiate
    return (*kernel.backward(q, k, v, spans, out, lse, dout), None)


_attend.defvjp(_attend_forward, _attend_backward)


def by_platform(choices: Mapping[str, Kernel], default: Kernel) -> Kernel:
    """A kernel that becomes one of several when it is lowered, by the platform that it is compiled for.

    Not when it is traced: a program may be compiled ahead of time for another machine than this one. All of them have
    a backward pass.

    Args:
        choices: kernels by platform.
        default: the kernel for all other platforms.
    """
    return _by_platform(tuple(sorted(choices.items())), default)


@functools.cache
def _by_platform(choices: tuple[tuple[str, Kernel], ...], default: Kernel) -> Kernel:
    def pass_(name: str) -> Callable[..., Any]:
        others = {platform: getattr(kernel, name) for platform, kernel in choices}
        return lambda *args: jax.lax.platform_dependent(*args, default=getattr(default, name), **others)

    return Kernel(pass_("forward"), pass_("backward"), pass_("cache"))


@functools.cache
def refusing_elsewhere(name: str, kernel: Kernel) -> Kernel:
    """A kernel that raises a ValueError when it is lowered for a platform that it cannot run on.

    Args:
        name: what the error calls it.
        kernel: the kernel; one with platforms of its own has a backward pass.
    """
    if not kernel.platforms:
        return kernel

    reason = (
        f"attention implementation {name!r} runs on {' and '.join(kernel.platforms)}, and this is compiled for "
        "{platform}; choose 'auto' or another implementation"
    )

    def refusing(pass_: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: refuse(reason, jax.eval_shape(pass_, *args))

    if kernel.backward is None:
        raise ValueError(f"attention implementation {name!r} is for some platforms alone, and so needs a backward pass")
    unfit = Kernel(
        refusing(kernel.forward),
        refusing(kernel.backward),
        lambda *args: refusing(lambda *args: (kernel.cache(*args),))(*args)[0],
    )
    return by_platform(dict.fromkeys(kernel.platforms, kernel), unfit)


def refuse(reason: str, shapes: Sequence[jax.ShapeDtypeStruct]) -> tuple[Array, ...]:
    """Arrays of which no program can be made: lowering it raises a ValueError. Tracing it does not.

    Args:
        reason: message of the error, in which `{platform}` stands for what it is lowered for.
        shapes: of the arrays.
    """
    return tuple(_refuse_p.bind(reason=reason, avals=tuple((s.shape, jnp.dtype(s.dtype)) for s in shapes)))


def _refuse_lowering(ctx: mlir.LoweringRuleContext, *, reason: str, avals: Avals) -> NoReturn:
    raise ValueError(reason.format(platform=", ".join(ctx.module_context.platforms)))


_refuse_p = jex.core.Primitive("refuse")
_refuse_p.multiple_results = True


@_refuse_p.def_impl
def _refuse_now(*, reason: str, avals: Avals) -> NoReturn:
    raise ValueError(reason.format(platform=jax.default_backend()))


@_refuse_p.def_abstract_eval
def _refuse_shapes(*, reason: str, avals: Avals) -> list[jax.core.ShapedArray]:
    return [jax.core.ShapedArray(shape, dtype) for shape, dtype in avals]


mlir.register_lowering(_refuse_p, _refuse_lowering)
