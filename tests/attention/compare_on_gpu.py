"""Compares GPU kernels with the dense attention on a GPU: `python tests/attention/compare_on_gpu.py [gpu] [mosaic]`.

Without names, all that the GPU is fit for.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from span_examples import SPANS, arrays, assert_close, values_and_gradients

from swjax.attention import span_attention
from swjax.attention.reference import reference_span_attention

SIZES = [
    # batch, queries, keys, heads, key heads, head dim
    (2, 610, 1700, 7, 1, 128),
    (1, 1000, 1000, 4, 4, 80),
    (2, 513, 1025, 14, 2, 64),
    (2, 1, 5000, 28, 4, 128),
    (2, 8, 3000, 28, 4, 128),
]

TOLERANCES = {
    "gpu": {jnp.float32: 1e-5, jnp.bfloat16: 2e-2},
    "mosaic": {jnp.bfloat16: 2e-2, jnp.float16: 2e-2},
}


def compare(size, dtype, tolerance, implementation):
    rng = np.random.default_rng(size[1])
    q, k, v, dout = arrays(rng, *size, dtype=dtype)
    attention = functools.partial(span_attention, implementation=implementation)
    for make_spans in SPANS:
        spans = make_spans(rng, *size[:3])
        found = values_and_gradients(q, k, v, spans, dout, attention=attention)
        exact = (x.astype(jnp.float32) for x in (q, k, v))
        with jax.default_matmul_precision("highest"):
            expected = values_and_gradients(*exact, spans, dout.astype(jnp.float32), attention=reference_span_attention)
        assert_close(found, [x.astype(dtype) for x in expected], tolerance)
        print(
            f"{implementation} {size} {jnp.dtype(dtype).name} {make_spans.__name__}: equal within {tolerance}",
            flush=True,
        )


if __name__ == "__main__":
    assert jax.default_backend() == "gpu", f"needs a GPU, and this is {jax.default_backend()}"
    is_hopper = jax.devices()[0].compute_capability.startswith("9.")
    chosen = sys.argv[1:] or (["gpu", "mosaic"] if is_hopper else ["gpu"])
    for implementation in chosen:
        for size in SIZES:
            for dtype, tolerance in TOLERANCES[implementation].items():
                compare(size, dtype, tolerance, implementation)
