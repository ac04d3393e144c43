"""Adapters beside the tiny golden model: what they add, in memory and on disk, and what they can represent."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import subjaxprs

from swjax.hub import load_hf
from swjax.models.adapters import (
    adapter_paths,
    adapter_shapes,
    attach_adapters,
    choose_targets,
    in_int8,
    magnitude_path,
    merge_stored,
    new_magnitudes,
    scale_path,
)
from swjax.models.layers import project
from swjax.models.parameters import merge_parameters, split_parameters
from swjax.models.qwen2_5_vl.weights import WEIGHTS
from swjax.models.stored import StoredArray, in_memory
from swjax.streaming import KeySpans

SPAN = np.arange(19, dtype=np.int32)[None]
ARGUMENTS = SPAN + 1, np.tile(SPAN, (3, 1, 1)), KeySpans(np.zeros_like(SPAN), SPAN + 1)
"""A row of 19 tokens for the model."""

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_qwen2_5_vl"


@pytest.fixture(scope="module")
def model():
    structure, parameters = split_parameters(load_hf(GOLDEN))
    return structure, {path: np.asarray(leaf) for path, leaf in parameters.items()}


def shapes_of(parameters):
    return {path: leaf.shape for path, leaf in parameters.items()}


def matrix_of(path, weight):
    """A weight as [layers, inputs, outputs], by the letters of its name."""
    where, letters = WEIGHTS.projections()[path], path.rsplit("_", 1)[1]
    stacked = weight.ndim - len(letters)
    order = [stacked + letters.index(letter) for letter in where.inputs + where.outputs]
    rows = np.prod([weight.shape[axis] for axis in order[: len(where.inputs)]])
    return weight.transpose([*range(stacked), *order]).reshape(-1, rows, weight[(0,) * stacked].size // rows)


def test_adapters_are_named_and_shaped_by_the_axes_of_their_weights(model):
    parameters = model[1]
    shapes = adapter_shapes(shapes_of(parameters), list(WEIGHTS.projections()), rank=5)
    assert shapes["decoder/layers/q_lora_a_dr"] == (3, 64, 5)
    assert shapes["decoder/layers/q_lora_b_rnh"] == (3, 5, 4, 16)
    assert shapes["decoder/layers/o_lora_a_nhr"] == (3, 4, 16, 5)
    assert shapes["decoder/layers/o_lora_b_rd"] == (3, 5, 64)
    assert shapes["visual/blocks/qkv_lora_b_rxnh"] == (4, 5, 3, 2, 16)
    assert shapes["visual/merger/down_lora_a_fr"] == (128, 5)
    assert shapes["decoder/head_lora_b_rv"] == (5, 512)
    assert not any("embedding" in path or "patch" in path for path in shapes)


def test_every_linear_layer_of_the_model_can_be_adapted(model):
    """Those of the table are the parameters of two axes and more, without the embedding and the convolution."""
    weights = {path for path in model[1] if "_weight_" in path or path.startswith("decoder/head")}
    assert set(WEIGHTS.projections()) == weights - {"visual/patch_weight_cd"}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("decoder/norm_d",), "'decoder/norm_d' matches no parameter; parameters begin with decoder/head_vd"),
        (("layers/q",), "matches no parameter"),
        (("decoder/(",), "is not a regular expression"),
        ((), r"config\.lora\.targets is empty"),
    ],
)
def test_targets_that_cannot_be_adapted_are_refused(model, targets, message):
    with pytest.raises(ValueError, match=message):
        choose_targets(targets, model[1])


def test_an_adapter_of_full_rank_makes_any_change_of_a_weight(model):
    """Every projection moves by a random change; A and B are its singular vectors. Logits are those of the change."""
    structure, parameters = model
    rng, alpha = np.random.default_rng(0), 3.0
    changed, adapted = dict(parameters), dict(parameters)
    for path in choose_targets(("decoder/", "visual/"), parameters):
        change = rng.standard_normal(parameters[path].shape, np.float32) * 0.02
        changed[path] = parameters[path] + change
        u, s, v = np.linalg.svd(matrix_of(path, change).astype(np.float64), full_matrices=False)
        factors = u, s[..., None] * v * (s.shape[-1] / alpha)
        shapes = adapter_shapes(shapes_of(parameters), [path], rank=s.shape[-1])
        for name, factor in zip(adapter_paths(path), factors, strict=True):
            adapted[name] = factor.astype(np.float32).reshape(shapes[name])
    attached = attach_adapters(adapted, alpha=alpha, dtype=np.float32)
    merged = {path: weight[...] for path, weight in attached.items()}
    assert merged.keys() == parameters.keys()
    for path, weight in changed.items():
        np.testing.assert_allclose(merged[path], weight, atol=1e-6, err_msg=path)

    found = (merged, changed, parameters, attached)
    logits = [np.asarray(merge_parameters(structure, one)(*ARGUMENTS)) for one in found]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)
    np.testing.assert_allclose(logits[3], logits[1], atol=1e-5)
    assert np.abs(logits[1] - logits[2]).max() > 0.01


def dora_of(parameters, targets, rng):
    """The parameters with random adapters of rank 4 and random magnitudes."""
    shapes = adapter_shapes(shapes_of(parameters), targets, rank=4, dora=True)
    added = {path: 0.1 * rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}
    return parameters | {path: np.abs(leaf) + 0.5 if "_lora_m_" in path else leaf for path, leaf in added.items()}


def test_dora_is_its_equation_in_memory_on_disk_and_in_the_model(model):
    """Equation 5, m (W + s B A) / ||W + s B A||, on matrices whose columns are the weights of an output."""
    structure, parameters = model
    targets = choose_targets(("decoder/layers/", "visual/merger", "visual/blocks/qkv"), parameters)
    everything = dora_of(parameters, targets, np.random.default_rng(0))
    attached = attach_adapters(everything, alpha=8.0, dtype=np.float32)

    def stored(array):
        return StoredArray(array.shape, array.dtype, lambda block: array[block], rows=1)

    merged = merge_stored({path: stored(array) for path, array in everything.items()}, alpha=8.0)
    whole = {path: array.read_rows(0, array.shape[0]) for path, array in merged.items()}
    for path in targets:
        weight = matrix_of(path, parameters[path]).astype(np.float64)
        layers, rows, columns = weight.shape
        a, b, m = (everything[name] for name in (*adapter_paths(path), magnitude_path(path)))
        v = weight + 8.0 / 4 * a.reshape(layers, rows, 4) @ b.reshape(layers, 4, columns)
        expected = m.reshape(layers, 1, columns) * v / np.linalg.norm(v, axis=1, keepdims=True)
        for found in (np.asarray(attached[path][...]), whole[path]):
            np.testing.assert_allclose(matrix_of(path, found), expected, atol=1e-5, err_msg=path)
    block = (slice(1, 3), slice(5, 30), slice(2, 4), slice(8, 11))
    path = "decoder/layers/q_weight_dnh"
    np.testing.assert_allclose(merged[path].read(block), whole[path][block], atol=1e-5)
    logits = [np.asarray(merge_parameters(structure, found)(*ARGUMENTS)) for found in (attached, whole, parameters)]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)
    assert np.abs(logits[1] - logits[2]).max() > 0.01


def test_new_magnitudes_change_nothing_in_int8_or_not(model):
    parameters = model[1]
    targets = choose_targets(("decoder/layers/",), parameters)
    shapes = adapter_shapes(shapes_of(parameters), targets, rank=4)
    nothing = {path: np.full(shape, 0.5 * ("_lora_a_" in path), np.float32) for path, shape in shapes.items()}
    for held in (parameters, in_int8(parameters, targets)):
        plain = attach_adapters({**held, **nothing}, alpha=8.0, dtype=np.float32)
        dora = {**held, **nothing, **new_magnitudes(held, targets)}
        for path, weight in attach_adapters(dora, alpha=8.0, dtype=np.float32).items():
            np.testing.assert_allclose(weight[...], plain[path][...], atol=1e-6, err_msg=path)


def test_dora_s_gradient_takes_the_lengths_for_constants(model):
    rng, path = np.random.default_rng(0), "decoder/layers/q_weight_dnh"
    everything = dora_of(model[1], [path], rng)
    weight = jax.tree.map(lambda leaf: leaf[0], attach_adapters(everything, alpha=8.0, dtype=np.float32)[path])
    x = rng.standard_normal((2, 5, 64), np.float32)
    lengths = weight.magnitude / weight.gain

    def ours(a, b, m):
        adapted = replace(weight, down=a, up=b, magnitude=m)
        return jnp.square(project(x, nnx.Param(adapted), "BLnh")).sum()

    def plain(a, b, m):
        changed = weight.weight + 8.0 / 4 * jnp.einsum("dr,rnh->dnh", a, b)
        return jnp.square(jnp.einsum("bld,dnh->blnh", x, changed * (m / lengths))).sum()

    factors = weight.down, weight.up, weight.magnitude
    for found, expected in zip(*(jax.grad(loss, argnums=(0, 1, 2))(*factors) for loss in (ours, plain)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("remat", ["minimal", "full"])
def test_no_gradient_of_a_whole_weight_is_made_and_adapters_get_that_of_the_merged_weights(model, remat):
    structure, parameters = model
    rng = np.random.default_rng(0)
    # Not keys and values: some product of attention has the shape of their weights.
    targets = choose_targets(("decoder/layers/(q|o|gate|up|down)_",), parameters)
    shapes = adapter_shapes(shapes_of(parameters), targets, rank=3)
    adapters = {path: 0.1 * rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}

    def loss_of(adapters, is_merged):
        weights = attach_adapters(parameters | adapters, alpha=6.0, dtype=np.float32)
        weights = {path: weight[...] for path, weight in weights.items()} if is_merged else weights
        adapted = merge_parameters(structure, weights)
        adapted.decoder.remat = remat
        return jnp.square(adapted(*ARGUMENTS)).mean()

    inside, merged = (jax.grad(loss_of)(adapters, is_merged) for is_merged in (False, True))
    for path, gradient in merged.items():
        np.testing.assert_allclose(inside[path], gradient, atol=1e-5 * np.abs(gradient).max(), err_msg=path)
    whole = {matrix_of(path, parameters[path]).shape[1:] for path in targets}
    found = product_shapes(jax.make_jaxpr(jax.grad(loss_of), static_argnums=1)(adapters, False).jaxpr)
    assert (64, 3) in found  # the gradient of an adapter's A
    assert not found & (whole | {shape[::-1] for shape in whole})


def product_shapes(jaxpr):
    """Shapes of all products of two matrices, those inside of loops among them."""
    found = {eqn.outvars[0].aval.shape for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"}
    return found.union(*map(product_shapes, subjaxprs(jaxpr)))


def test_weights_in_int8_are_within_half_a_step_and_used_as_they_are_merged(model):
    structure, parameters = model
    rng = np.random.default_rng(0)
    targets = choose_targets(("decoder/layers/", "visual/blocks/"), parameters)
    held = {path: np.asarray(leaf) for path, leaf in in_int8(parameters, targets).items()}
    for path in targets:
        letters, scale = path.rsplit("_", 1)[1], held[scale_path(path)]
        outputs = scale_path(path).rsplit("_", 1)[1]
        steps = np.einsum(f"...{outputs},...{letters}->...{letters}", scale, np.ones_like(parameters[path]))
        assert held[path].dtype == np.int8
        assert (np.abs(held[path] * steps - parameters[path]) <= 0.5001 * steps).all(), path
    shapes = adapter_shapes(shapes_of(parameters), targets, rank=4)
    held |= {path: 0.1 * rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}
    attached = attach_adapters(held, alpha=8.0, dtype=np.float32)
    merged = merge_stored({path: in_memory(array) for path, array in held.items()}, alpha=8.0)
    assert merged.keys() == attached.keys() == parameters.keys()
    block = (slice(1, 3), slice(5, 30), slice(2, 4), slice(8, 11))
    path = "decoder/layers/q_weight_dnh"
    np.testing.assert_allclose(merged[path].read(block), attached[path][...][block], atol=1e-5)
    whole = {path: array.read_rows(0, array.shape[0]) for path, array in merged.items()}
    logits = [np.asarray(merge_parameters(structure, found)(*ARGUMENTS)) for found in (attached, whole)]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)


def test_weights_on_disk_are_merged_block_by_block(model):
    rng, parameters = np.random.default_rng(0), model[1]
    targets = choose_targets(("decoder/layers", "visual/merger"), parameters)
    shapes = adapter_shapes(shapes_of(parameters), targets, rank=4)
    everything = parameters | {path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}

    def stored(array):
        return StoredArray(array.shape, array.dtype, lambda block: array[block], rows=1)

    merged = merge_stored({path: stored(np.asarray(array)) for path, array in everything.items()}, alpha=8.0)
    attached = attach_adapters(everything, alpha=8.0, dtype=np.float32)
    expected = {path: np.asarray(weight[...]) for path, weight in attached.items()}
    assert merged.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_allclose(merged[path].read_rows(0, array.shape[0]), array, atol=1e-5, err_msg=path)
    block = (slice(1, 3), slice(5, 30), slice(2, 4), slice(8, 11))
    weight = "decoder/layers/q_weight_dnh"
    np.testing.assert_allclose(merged[weight].read(block), expected[weight][block], atol=1e-5)


def test_dropout_drops_the_inputs_of_each_adapter_and_layer_by_themselves_and_nothing_without_a_key(model):
    structure, parameters = model
    rng = np.random.default_rng(0)
    targets = choose_targets(("decoder/layers/(q|k|down)_",), parameters)
    shapes = adapter_shapes(shapes_of(parameters), targets, rank=3)
    everything = parameters | {path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}

    def attached(key):
        return attach_adapters(everything, alpha=6.0, dtype=np.float32, dropout=0.25, key=key)

    first = attached(jax.random.key(0))
    x = rng.standard_normal((4, 500, 64), np.float32)
    seen = {}
    for path in targets[:2]:
        for layer in range(3):
            weight = jax.tree.map(lambda leaf, layer=layer: leaf[layer], first[path])
            dropped = seen[path, layer] = np.asarray(weight.dropped(jnp.asarray(x)))
            np.testing.assert_allclose(dropped, np.where(dropped == 0, 0, x / 0.75), rtol=1e-6)
            assert np.mean(dropped == 0) == pytest.approx(0.25, abs=0.01)
    assert len({dropped.tobytes() for dropped in seen.values()}) == len(seen)
    assert all(weight.key is None for weight in attached(None).values() if hasattr(weight, "key"))

    def logits(parameters):
        return np.asarray(merge_parameters(structure, parameters)(*ARGUMENTS))

    np.testing.assert_array_equal(logits(attached(jax.random.key(0))), logits(first))
    assert np.abs(logits(attached(jax.random.key(1))) - logits(first)).max() > 0.01
    assert np.abs(logits(attached(None)) - logits(first)).max() > 0.01
