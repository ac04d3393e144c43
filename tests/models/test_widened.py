"""Widths of MLPs, and of heads of the vision tower, that are filled up with zeros change nothing that is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from apart import with_layers_apart
from flax import nnx

from swjax.models.adapters import attach_adapters, choose_targets, new_adapters, new_magnitudes
from swjax.models.parameters import Parameters, merge_parameters, split_parameters, widened
from swjax.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig

TILE = 64
ODD = {"intermediate_size": 90}


def test_filled_up_widths_give_the_same_features_and_logits() -> None:
    model = Qwen2_5_VL(Qwen2_5_VLConfig.preset("tiny", vision=ODD, text=ODD), rngs=nnx.Rngs(0))
    pixels = jax.random.normal(jax.random.key(1), (16, model.config.geometry.patch_dim))
    grid = jnp.array([[1, 4, 4]])
    for held in (model, with_layers_apart(model)):
        structure, parameters = split_parameters(held)
        wide = widened(parameters, {"f": TILE})
        changed = {path for path in wide if wide[path].shape != parameters[path].shape}
        assert {path.rpartition("/")[2] for path in changed} == {
            *("gate_weight_df", "up_weight_df", "down_weight_fd"),
            *("gate_bias_f", "up_bias_f"),
        }
        assert all(128 in wide[path].shape for path in changed)
        filled = merge_parameters(structure, wide)
        np.testing.assert_allclose(
            filled.encode_video(pixels, grid), held.encode_video(pixels, grid), rtol=1e-5, atol=1e-6
        )
        hidden = jnp.ones((1, 3, model.config.text.hidden_size))
        layer = (
            (lambda m: m.decoder.layers[0])
            if held is not model
            else (lambda m: jax.tree.map(lambda x: x[0], m.decoder.layers))
        )
        attended = jnp.ones((1, 3, model.config.text.num_heads, model.config.text.head_dim))
        np.testing.assert_allclose(
            layer(filled).finish(hidden, attended), layer(held).finish(hidden, attended), rtol=1e-5, atol=1e-6
        )


HEADS_OF_12 = Qwen2_5_VLConfig.preset("tiny", vision={"hidden_size": 48, "num_heads": 4})


def features(structure: nnx.GraphDef, parameters: Parameters) -> jax.Array:
    """Of a video of 8 x 8 patches, with the adapters among the parameters."""
    pixels = jax.random.normal(jax.random.key(1), (64, HEADS_OF_12.geometry.patch_dim))
    model = merge_parameters(structure, attach_adapters(parameters, alpha=2.0, dtype=jnp.float32))
    found = model.encode_video(pixels, jnp.array([[1, 8, 8]]))
    assert float(jnp.abs(found).max()) > 1e-3
    return found


def widths_changed(wide: Parameters, parameters: Parameters) -> set[str]:
    return {path for path in wide if wide[path].shape != parameters[path].shape}


@pytest.mark.parametrize("apart", [False, True])
def test_filled_up_heads_of_the_vision_tower_give_the_same_features(apart: bool) -> None:
    model = Qwen2_5_VL(HEADS_OF_12, rngs=nnx.Rngs(0))
    structure, parameters = split_parameters(with_layers_apart(model) if apart else model)
    wide = widened(parameters, {"h": TILE})
    changed = widths_changed(wide, parameters)
    assert {path.rpartition("/")[2] for path in changed} == {"qkv_weight_dxnh", "qkv_bias_xnh", "o_weight_nhd"}
    assert all(path.startswith("visual/blocks/") for path in changed)
    np.testing.assert_allclose(features(structure, wide), features(structure, parameters), rtol=1e-5, atol=1e-6)


def test_adapters_are_filled_up_with_the_heads_that_they_change() -> None:
    structure, plain = split_parameters(Qwen2_5_VL(HEADS_OF_12, rngs=nnx.Rngs(0)))
    targets = choose_targets(["visual/blocks/(qkv|o)_"], plain)
    shapes = {path: leaf.shape for path, leaf in plain.items()}
    adapters = new_adapters(shapes, targets, rank=2, key=jax.random.key(2)) | new_magnitudes(plain, targets)
    parameters = plain | {
        path: jax.random.normal(jax.random.key(3), leaf.shape) if "_lora_b_" in path else leaf
        for path, leaf in adapters.items()
    }
    wide = widened(parameters, {"h": TILE})
    added = {path.rpartition("/")[2] for path in widths_changed(wide, parameters) if "_lora_" in path}
    assert added == {"qkv_lora_b_rxnh", "qkv_lora_m_xnh", "o_lora_a_nhr"}
    found = features(structure, parameters)
    assert not np.allclose(found, features(structure, plain), rtol=1e-2)
    np.testing.assert_allclose(features(structure, wide), found, rtol=1e-5, atol=1e-6)


def test_of_shapes_it_gives_shapes() -> None:
    wide = widened({"visual/blocks/down_weight_fd": jax.ShapeDtypeStruct((2, 90, 8), jnp.bfloat16)}, {"f": TILE})
    assert wide == {"visual/blocks/down_weight_fd": jax.ShapeDtypeStruct((2, 128, 8), jnp.bfloat16)}
