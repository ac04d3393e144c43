"""Widths of MLPs that are filled up with zeros change nothing that is computed."""

import jax
import jax.numpy as jnp
import numpy as np
from apart import with_layers_apart
from flax import nnx

from swjax.models.parameters import merge_parameters, split_parameters, widened
from swjax.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig

TILE = 64
ODD = {"intermediate_size": 90}


def test_filled_up_widths_give_the_same_features_and_logits() -> None:
    model = Qwen2_5_VL(Qwen2_5_VLConfig.preset("tiny", vision=ODD, text=ODD), rngs=nnx.Rngs(0))
    pixels = jax.random.normal(jax.random.key(1), (16, model.config.geometry.patch_dim))
    grid = jnp.array([[1, 4, 4]])
    for held in (model, with_layers_apart(model)):
        structure, parameters = split_parameters(held)
        wide = widened(parameters, TILE)
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


def test_of_shapes_it_gives_shapes() -> None:
    wide = widened({"visual/blocks/down_weight_fd": jax.ShapeDtypeStruct((2, 90, 8), jnp.bfloat16)}, TILE)
    assert wide == {"visual/blocks/down_weight_fd": jax.ShapeDtypeStruct((2, 128, 8), jnp.bfloat16)}
