"""The GPU kernels in interpret mode against the dense attention, lowered for CUDA, and on a GPU where there is one."""

import functools
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from span_examples import (
    SPANS,
    answer_before_video_spans,
    arrays,
    assert_close,
    mostly_empty_spans,
    packed_spans,
    random_spans,
    spans_of,
    values_and_gradients,
)

from swjax.attention import span_attention
from swjax.attention.gpu import GPUBlocks, make_gpu_kernel
from swjax.attention.kernel import attend
from swjax.attention.reference import reference_span_attention
from swjax.streaming import KeySpans

SMALL = make_gpu_kernel(GPUBlocks(queries=64, keys=32, backward_queries=64, backward_keys=64), interpret=True)
small = functools.partial(attend, SMALL)

AMPERE = jax.sharding.AbstractMesh(
    (1,),
    ("devices",),
    axis_types=(jax.sharding.AxisType.Auto,),
    abstract_device=jax.sharding.AbstractDevice("NVIDIA A100-SXM4-80GB", None, "gpu"),
)
"""What kernels are lowered for where there is no GPU."""

SIZES = [
    # batch, queries, keys, heads, key heads, head dim
    (2, 61, 700, 7, 1, 128),
    (1, 300, 650, 2, 2, 80),
    (2, 150, 512, 4, 2, 64),
    (2, 1, 600, 14, 2, 128),  # decode: heads packed, keys divided
    (2, 8, 300, 28, 4, 32),
    (3, 20, 9, 6, 3, 8),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_dense_one(size):
    rng = np.random.default_rng(size[1])
    q, k, v, dout = arrays(rng, *size)
    for make_spans in SPANS:
        spans = make_spans(rng, *size[:3])
        found = values_and_gradients(q, k, v, spans, dout, attention=small)
        expected = values_and_gradients(q, k, v, spans, dout, attention=reference_span_attention)
        assert_close(found, expected, 1e-5)
        nothing_seen = np.asarray(spans.start >= spans.stop)
        assert not np.asarray(found[0])[nothing_seen].any()
        assert not np.asarray(found[1])[nothing_seen].any()


@pytest.mark.parametrize("make_spans", [random_spans, packed_spans])
def test_bfloat16(make_spans):
    rng = np.random.default_rng(1)
    size = (2, 90, 300, 7, 1, 128)
    q, k, v, dout = arrays(rng, *size, dtype=jnp.bfloat16)
    spans = make_spans(rng, *size[:3])
    found = values_and_gradients(q, k, v, spans, dout, attention=small)
    exact = values_and_gradients(
        *(x.astype(jnp.float32) for x in (q, k, v)),
        spans,
        dout.astype(jnp.float32),
        attention=reference_span_attention,
    )
    assert_close(found, [x.astype(jnp.bfloat16) for x in exact], 2e-2)


@pytest.mark.parametrize("queries", [2, 90])
def test_log_sum_exp(queries):
    rng = np.random.default_rng(2)
    q, k, v, _ = arrays(rng, 2, queries, 700, 4, 2, 64)
    spans = mostly_empty_spans(rng, 2, queries, 700)
    _, lse = SMALL.forward(q, k, v, spans)
    scores = np.einsum("btnh,bsnh->bnts", q, np.repeat(k, 2, axis=2)) / 8
    seen = spans.to_mask(700)[:, None]
    with np.errstate(divide="ignore"):
        expected = np.log((np.exp(scores) * seen).sum(axis=-1))
    np.testing.assert_allclose(lse, np.where(np.isfinite(expected), expected, 0), atol=1e-5)


def test_default_blocks():
    rng = np.random.default_rng(3)
    size = (1, 400, 900, 2, 1, 64)
    q, k, v, dout = arrays(rng, *size)
    spans = answer_before_video_spans(rng, *size[:3])
    attention = functools.partial(attend, make_gpu_kernel(GPUBlocks(), interpret=True))
    found = values_and_gradients(q, k, v, spans, dout, attention=attention)
    expected = values_and_gradients(q, k, v, spans, dout, attention=reference_span_attention)
    assert_close(found, expected, 1e-5)


def test_keys_out_of_reach_are_not_read():
    rng = np.random.default_rng(4)
    q, k, v, dout = arrays(rng, 2, 30, 1280, 4, 2, 16)
    spans = spans_of(np.full((2, 30), [[520], [0]]), np.full((2, 30), [[760], [100]]))
    expected = values_and_gradients(q, k, v, spans, dout, attention=small)
    for row, (start, stop) in enumerate([(512, 776), (0, 128)]):
        outside = np.ones(1280, bool)
        outside[start:stop] = False
        k, v = (x.at[row, outside].set(jnp.nan) for x in (k, v))
    found = values_and_gradients(q, k, v, spans, dout, attention=small)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("shape", "kernels"),
    [
        ((1, 32768, 32768, 28, 4, 128), 3),
        ((1, 32768, 32768, 16, 16, 80), 3),
        ((2, 3001, 4001, 4, 2, 64), 3),
        ((2, 8, 32768, 28, 4, 128), 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
def test_lowers_for_cuda(shape, kernels, dtype):
    """Forward and backward. Whether it compiles and runs only a GPU can tell."""
    batch, queries, keys, heads, key_heads, head_dim = shape
    q = jax.ShapeDtypeStruct((batch, queries, heads, head_dim), dtype)
    k = jax.ShapeDtypeStruct((batch, keys, key_heads, head_dim), dtype)
    edge = jax.ShapeDtypeStruct((batch, queries), jnp.int32)

    def loss(q, k, v, spans):
        return span_attention(q, k, v, spans, implementation="gpu").astype(jnp.float32).sum()

    with jax.sharding.use_abstract_mesh(AMPERE):
        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(q, k, k, KeySpans(edge, edge))
        lowered = traced.lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("triton") >= kernels


@pytest.mark.gpu
@pytest.mark.skipif(
    shutil.which("nvidia-smi") is None or not (find_spec("jax_cuda13_plugin") or find_spec("jax_cuda12_plugin")),
    reason="needs an NVIDIA GPU, its driver, and the cuda extra",
)
def test_on_a_gpu(tmp_path):
    """In a process of its own, because the tests run on the CPU."""
    root, out = Path(__file__).parents[2], tmp_path / "records.jsonl"
    environment = {**os.environ, "JAX_PLATFORMS": "cuda,cpu", "XLA_FLAGS": "", "PYTHONPATH": str(root)}
    command = [sys.executable, root / "benchmarks" / "gpu_parts" / "kernels.py", "--out", out]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert records
    assert not [record for record in records if not record.get("ok")]


def test_by_name_it_refuses_a_cpu():
    q, k, v, _ = arrays(np.random.default_rng(9), 1, 4, 4, 2, 1, 8)
    with pytest.raises(ValueError, match="'gpu' runs on cuda, and this is compiled for cpu"):
        span_attention(q, k, v, spans_of([[0] * 4], [[4] * 4]), implementation="gpu")
