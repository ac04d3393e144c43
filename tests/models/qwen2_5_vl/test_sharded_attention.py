"""The whole model with attention divided over eight devices against the same on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swjax.attention import AttentionSharding, SpanAttention, stripe_order
from swjax.models.family import abstract_model
from swjax.models.parameters import merge_parameters, split_parameters
from swjax.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig
from swjax.streaming import KeySpans, SpecialTokens, build_layout, pad_layout

LENGTH = 64
GRID = (6, 4, 4)
SPECIAL = SpecialTokens.qwen2_5_vl()


@pytest.fixture(scope="module")
def config():
    return Qwen2_5_VLConfig.preset("tiny", video_token_id=509, image_token_id=508)


@pytest.fixture(scope="module")
def parameters(config):
    return split_parameters(Qwen2_5_VL(config, rngs=nnx.Rngs(0)))[1]


@pytest.fixture(scope="module")
def example(config):
    """A streaming example in slot order, with its patches and the weights of its logits in the loss."""
    rng = np.random.default_rng(0)
    video = [SPECIAL.video_pad] * (GRID[0] * GRID[1] * GRID[2] // 4)
    text = [SPECIAL.im_start, 7, SPECIAL.newline, SPECIAL.vision_start]
    answer = rng.integers(10, 400, 20).tolist()
    ids = [*text, *video, *SPECIAL.trailer, *SPECIAL.prefix, *answer, SPECIAL.im_end, SPECIAL.newline]
    layout = pad_layout(build_layout(ids, [GRID], variant="gdpe", special_tokens=SPECIAL), LENGTH)
    token_ids = np.where(layout.token_ids == SPECIAL.video_pad, config.video_token_id, layout.token_ids % 500)
    patches = rng.integers(0, 256, (1, GRID[0] * GRID[1] * GRID[2], config.vision.patch_dim)).astype(np.uint8)
    weights = rng.normal(size=(1, LENGTH, config.text.vocab_size)).astype(np.float32)
    rows = token_ids[None], layout.position_ids[:, None], KeySpans(*(edge[None] for edge in layout.spans)), weights
    return rows, patches


@functools.partial(jax.jit, static_argnums=0)
def logits_and_gradients(structure, parameters, rows, patches, slots):
    token_ids, position_ids, spans, weights = rows

    def loss(parameters):
        model = merge_parameters(structure, parameters)
        grid = jnp.array([[GRID]])
        logits = model(token_ids, position_ids, spans, pixel_values=patches, video_grid_thw=grid, slots=slots)
        return (logits * weights).sum(), logits

    gradients, logits = jax.grad(loss, has_aux=True)(parameters)
    return logits, gradients


def structure_with(config, attention, vision_attention):
    return split_parameters(abstract_model(config, attention=attention, vision_attention=vision_attention))[0]


@pytest.mark.parametrize("stripe", [None, 4])
def test_context_parallel_equals_one_device(config, parameters, example, stripe):
    rows, patches = example
    plain = SpanAttention("reference")
    expected, expected_gradients = logits_and_gradients(
        structure_with(config, plain, plain), parameters, rows, patches, None
    )

    mesh = jax.make_mesh((8,), ("context",), axis_types=(jax.sharding.AxisType.Auto,))
    decoder = SpanAttention(sharding=AttentionSharding(mesh, context="context", stripe=stripe))
    vision = SpanAttention(sharding=AttentionSharding(mesh, context="context"))
    order = np.arange(LENGTH, dtype=np.int32) if stripe is None else stripe_order(LENGTH, 8, stripe)
    token_ids, position_ids, spans, weights = rows
    striped = (
        token_ids[:, order],
        position_ids[:, :, order],
        KeySpans(spans.start[:, order], spans.stop[:, order]),
        weights[:, order],
    )
    found, gradients = logits_and_gradients(
        structure_with(config, decoder, vision), parameters, striped, patches, order[None]
    )
    np.testing.assert_allclose(found, np.asarray(expected)[:, order], atol=1e-4)
    for path, gradient in gradients.items():
        scale = np.abs(expected_gradients[path]).max()
        np.testing.assert_allclose(gradient, expected_gradients[path], atol=2e-5 * scale, err_msg=path)


def test_equal_attentions_make_one_program(config):
    """The attention is part of the structure by value: two runs with equal ones share what was compiled."""
    mesh = jax.make_mesh((8,), ("context",), axis_types=(jax.sharding.AxisType.Auto,))
    one, other = (
        structure_with(config, SpanAttention(sharding=AttentionSharding(mesh, context="context")), SpanAttention())
        for _ in range(2)
    )
    assert one == other
    assert hash(one) == hash(other)
    assert one != structure_with(config, SpanAttention("chunked"), SpanAttention())
