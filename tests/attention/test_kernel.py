"""The choice of an implementation: by name, by platform, and when it is made."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swjax.attention import implementation_for, span_attention
from swjax.attention.chunked import chunked_kernel
from swjax.attention.kernel import Kernel, attend, by_platform, refusing_elsewhere
from swjax.streaming import KeySpans


@pytest.fixture
def example():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 6, 2, 8)), jnp.float32) for _ in range(3))
    return q, k, v, KeySpans(np.zeros((1, 6), np.int32), np.arange(1, 7, dtype=np.int32)[None])


def doubled(platforms=()):
    """A kernel that can be told from the real one."""

    def forward(q, k, v, spans):
        out, lse = chunked_kernel.forward(q, k, v, spans)
        return 2 * out, lse

    return Kernel(forward, chunked_kernel.backward, chunked_kernel.cache, platforms)


def test_small_rows_are_dense_on_a_cpu():
    choose = functools.partial(implementation_for, dtype=jnp.float32, width=128)
    assert choose("cpu", queries=150, keys=150) == "dense"
    assert choose("cpu", queries=150, keys=150, sharded=True) == "chunked"
    assert choose("cpu", queries=4096, keys=4096) == "chunked"
    assert choose("cpu", queries=1, keys=100_000) == "chunked"
    assert choose("rocm", queries=10, keys=10) == "chunked"


def test_hopper_takes_mosaic_where_it_fits(monkeypatch):
    choose = functools.partial(implementation_for, queries=4096, keys=4096)
    assert choose("cuda", dtype=jnp.bfloat16, width=128) == "gpu"  # nothing is known of the GPU
    for capability, expected in (("9.0", "mosaic"), ("8.0", "gpu")):
        device = types.SimpleNamespace(compute_capability=capability)
        monkeypatch.setattr(jax, "devices", lambda device=device: [device])
        assert choose("cuda", dtype=jnp.bfloat16, width=80) == expected
        assert choose("cuda", dtype=jnp.float32, width=80) == "gpu"
        assert choose("cuda", dtype=jnp.bfloat16, width=256) == "gpu"
        assert choose("tpu", dtype=jnp.bfloat16, width=128) == "tpu"


@pytest.mark.parametrize(("length", "expected"), [(64, "dense"), (1024, "chunked")])
def test_auto_is_the_documented_choice(length, expected):
    """The same program as by name, bit for bit."""
    rng = np.random.default_rng(1)
    q, k, v = (jnp.asarray(rng.normal(size=(1, length, 2, 8)), jnp.float32) for _ in range(3))
    spans = KeySpans(np.zeros((1, length), np.int32), np.arange(1, length + 1, dtype=np.int32)[None])
    assert implementation_for("cpu", queries=length, keys=length, dtype=q.dtype, width=8) == expected

    def gradients(implementation):
        loss = functools.partial(span_attention, implementation=implementation)
        return jax.jit(jax.grad(lambda q: (loss(q, k, v, spans) ** 2).sum()))(q)

    np.testing.assert_array_equal(gradients("auto"), gradients(expected))


def test_the_platform_is_that_of_the_compiler(example):
    """A program lowered for another platform than this machine's takes that platform's kernel."""
    kernel = by_platform({"tpu": doubled()}, chunked_kernel)
    attention = jax.jit(functools.partial(attend, kernel))
    np.testing.assert_array_equal(attention(*example), chunked_kernel.forward(*example)[0])
    for_tpu = attention.trace(*example).lower(lowering_platforms=("tpu",)).as_text()
    for_cpu = attention.trace(*example).lower(lowering_platforms=("cpu",)).as_text()
    twice = "dense<2.000000e+00>"
    assert twice in for_tpu
    assert twice not in for_cpu


@pytest.mark.parametrize("wrap", [jax.jit, lambda function: function], ids=["jit", "eager"])
def test_a_kernel_refuses_other_platforms(example, wrap):
    kernel = refusing_elsewhere("fast", doubled(platforms=("tpu",)))
    with pytest.raises(ValueError, match="'fast' runs on tpu, and this is compiled for cpu"):
        wrap(functools.partial(attend, kernel))(*example)
    with pytest.raises(ValueError, match="'fast' runs on tpu"):
        wrap(jax.grad(lambda q, *others: attend(kernel, q, *others).sum()))(*example)
    lowered = jax.jit(functools.partial(attend, kernel)).trace(*example).lower(lowering_platforms=("tpu",))
    assert "dense<2.000000e+00>" in lowered.as_text()
