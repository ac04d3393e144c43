"""Attention divided over eight devices against the same on one, and the levelling of its work."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from swjax.attention import AttentionSharding, span_attention, stripe_order
from swjax.streaming import KeySpans, SpecialTokens, build_layout


def mesh_of(**axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(jax.sharding.AxisType.Auto,) * len(axes))


@functools.partial(jax.jit, static_argnames="sharding")
def values_and_gradients(q, k, v, spans, dout, *, sharding):
    out, pull_back = jax.vjp(
        lambda q, k, v: span_attention(q, k, v, spans, implementation="chunked", sharding=sharding), q, k, v
    )
    return out, *pull_back(dout)


def make_example(batch=4, length=128, heads=8, key_heads=4, head_dim=8):
    rng = np.random.default_rng(0)
    shapes = (heads, key_heads, key_heads, heads)
    q, k, v, dout = (jnp.asarray(rng.normal(size=(batch, length, n, head_dim)), jnp.float32) for n in shapes)
    start = rng.integers(0, length, (batch, length)).astype(np.int32)
    stop = np.minimum(start + rng.integers(0, length, (batch, length)), length).astype(np.int32)
    return q, k, v, KeySpans(start, stop), dout


@pytest.mark.parametrize(
    ("axes", "fields"),
    [
        ({"context": 8}, {"context": "context"}),
        ({"context": 8}, {"context": "context", "stripe": 8}),
        ({"data": 2, "context": 4}, {"batch": ("data",), "context": "context", "stripe": 4}),
        ({"data": 2, "fsdp": 2, "tensor": 2}, {"batch": ("data", "fsdp"), "heads": "tensor"}),
        ({"data": 2, "tensor": 2, "context": 2}, {"batch": ("data",), "heads": "tensor", "context": "context"}),
        ({"data": 2, "unused": 4}, {"batch": ("data",)}),
    ],
    ids=str,
)
def test_equals_one_device(axes, fields):
    *arrays, spans, dout = make_example()
    expected = values_and_gradients(*arrays, spans, dout, sharding=None)
    sharding = AttentionSharding(mesh_of(**axes), **fields)
    order = np.arange(spans.start.shape[1])
    if sharding.stripe:
        order = stripe_order(len(order), sharding.context_shards, sharding.stripe)
    place = NamedSharding(sharding.mesh, PartitionSpec(sharding.batch or None, sharding.context))
    q, k, v, start, stop, dout = jax.device_put(
        [x[:, order] for x in (*arrays, spans.start, spans.stop, dout)], [place] * 6
    )
    found = values_and_gradients(q, k, v, KeySpans(start, stop), dout, sharding=sharding)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, np.asarray(other)[:, order], atol=1e-5)
        assert one.sharding.shard_shape(one.shape)[1] == len(order) // sharding.context_shards


def test_gathered_keys_are_not_kept():
    """What the backward pass is given has the size of a shard."""
    q, k, v, spans, _ = make_example(batch=1, length=1024)
    sharding = AttentionSharding(mesh_of(context=8), context="context")
    _, pull_back = jax.vjp(lambda *qkv: span_attention(*qkv, spans, sharding=sharding), q, k, v)
    kept = [x for x in jax.tree.leaves(pull_back) if getattr(x, "ndim", 0) == 4]
    assert kept
    per_device = {np.prod(x.sharding.shard_shape(x.shape)) for x in kept if len(x.sharding.device_set) == 8}
    assert per_device == {q.size // 8}  # the output; q, k and v are those that came in


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": ("rows",)}, "no axis 'rows'"),
        ({"batch": ("data",), "heads": "data"}, "share a mesh axis"),
        ({"batch": ("data",), "stripe": 4}, "needs a context axis"),
    ],
)
def test_wrong_axes(fields, message):
    with pytest.raises(ValueError, match=message):
        AttentionSharding(mesh_of(data=2, context=4), **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": ("data", "context")}, "multiple of 8 rows, got 4"),
        ({"heads": "data", "context": "context", "stripe": 256}, "multiple of 1024 keys a row, got 128"),
    ],
)
def test_sizes_that_do_not_divide(fields, message):
    q, k, v, spans, _ = make_example()
    sharding = AttentionSharding(mesh_of(data=2, context=4), **fields)
    with pytest.raises(ValueError, match=message):
        span_attention(q, k, v, spans, sharding=sharding)


def test_the_dense_one_is_not_sharded_by_hand():
    q, k, v, spans, _ = make_example()
    sharding = AttentionSharding(mesh_of(data=2, context=4), batch=("data",))
    with pytest.raises(ValueError, match="'reference' takes no sharding"):
        span_attention(q, k, v, spans, implementation="reference", sharding=sharding)


LENGTH, SHARDS, STRIPE = 65536, 8, 32


def causal_row():
    return KeySpans(np.zeros(LENGTH, np.int32), np.arange(1, LENGTH + 1, dtype=np.int32))


def gdpe_layout(length, per_frame=64):
    """Spans of a streaming example of at most so many slots: 3 answer tokens after each frame."""
    special = SpecialTokens.qwen2_5_vl()
    frames = (length - 40) // (per_frame + 3)
    answer = [9] * (3 * frames)
    before = [special.im_start, 7, special.newline, special.vision_start]
    ids = [*before, *[special.video_pad] * (frames * per_frame), *special.trailer, *special.prefix, *answer]
    ids += [special.im_end, special.newline]
    return build_layout(ids, [[frames, 16, per_frame // 4]], variant="gdpe", special_tokens=special).spans


def gdpe_row():
    return packed(gdpe_layout(LENGTH))


def packed_row():
    """Examples of unlike lengths one after another."""
    rng = np.random.default_rng(0)
    parts = []
    while (room := LENGTH - sum(len(part.start) for part in parts)) > 2000:
        parts.append(gdpe_layout(min(room, int(rng.integers(2000, 20000)))))
    return packed(*parts)


def packed(*parts):
    start, stop, offset = [], [], 0
    for part in parts:
        start.append(part.start + offset)
        stop.append(part.stop + offset)
        offset += len(part.start)
    padding = np.arange(offset, LENGTH)
    return KeySpans(
        np.concatenate([*start, padding]).astype(np.int32), np.concatenate([*stop, padding + 1]).astype(np.int32)
    )


def touched_keys(spans, block):
    """Keys that each block of queries goes through: the union of its spans."""
    return spans.stop.reshape(-1, block).max(axis=1) - spans.start.reshape(-1, block).min(axis=1)


@pytest.mark.parametrize(("row", "tolerance"), [(causal_row, 0.001), (gdpe_row, 0.01), (packed_row, 0.07)])
def test_stripes_level_the_work(row, tolerance):
    spans = row()
    order = stripe_order(LENGTH, SHARDS, STRIPE)
    striped = KeySpans(spans.start[order], spans.stop[order])
    seen = (striped.stop - striped.start).reshape(SHARDS, -1).sum(axis=1)
    touched = touched_keys(striped, STRIPE).reshape(SHARDS, -1).sum(axis=1)
    assert seen.max() < (1 + tolerance) * seen.mean()
    assert touched.max() < (1 + tolerance) * touched.mean()
    assert touched.sum() == touched_keys(spans, STRIPE).sum()  # no block has become dearer
    consecutive = (spans.stop - spans.start).reshape(SHARDS, -1).sum(axis=1)
    assert consecutive.max() > 1.2 * consecutive.mean()  # what there was to level


def test_stripe_order_deals_back_and_forth():
    np.testing.assert_array_equal(stripe_order(16, 2, 2), [0, 1, 6, 7, 8, 9, 14, 15, 2, 3, 4, 5, 10, 11, 12, 13])
    order = stripe_order(96, 4, 3)
    np.testing.assert_array_equal(np.arange(96)[order][np.argsort(order)], np.arange(96))
    with pytest.raises(ValueError, match="make it a multiple of 32"):
        stripe_order(100, 4, 8)
