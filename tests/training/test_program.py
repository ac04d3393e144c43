"""What a run's program is told by its configuration about attention."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh
from ml_collections import ConfigDict

from swjax.attention import SpanAttention
from swjax.mesh import make_mesh
from swjax.models.family import abstract_model
from swjax.models.qwen2_5_vl import Qwen2_5_VLConfig
from swjax.training.compilations import count_compilations
from swjax.training.config import ConfigError, base_config, changed_keys, check_config, freeze
from swjax.training.program import describe_attention, fit_rows, make_attention, make_program, open_mesh
from swjax.training.sections import Config, DataConfig


def test_the_start_says_which_attention_runs():
    data = DataConfig(max_tokens=136, max_patches=4096)
    mesh, model = make_mesh(devices=jax.devices()[:1]), Qwen2_5_VLConfig.preset("tiny")

    def describe(attention: str, mesh: Mesh) -> str:
        return describe_attention(attention, data, model, mesh, dtype="bfloat16")

    assert describe("auto", mesh) == "attention on cpu: dense in the decoder, chunked in the vision tower"
    assert "chunked in the decoder" in describe("auto", make_mesh())
    assert "chunked in the decoder" in describe("chunked", mesh)


def mesh_config(**mesh: int) -> ConfigDict:
    config = base_config()
    config.batch_size = 8
    config.mesh.update({"data": 1} | mesh)
    return config


def mesh_of(config: Config, model: Qwen2_5_VLConfig) -> tuple[Mesh, int | None]:
    return open_mesh(config.mesh, config.data, config.batch_size, model.geometry.token_patches)


def test_rows_that_do_not_fit_the_mesh_are_refused():
    model = Qwen2_5_VLConfig.preset("7b")
    config = mesh_config(data=8)
    config.batch_size = 12
    with pytest.raises(ConfigError, match=r"config\.batch_size is 12; config\.mesh\.data x config\.mesh\.fsdp = 8"):
        mesh_of(freeze(config), model)
    config = mesh_config(context=4, fsdp=2)
    config.data.max_patches = 1000
    with pytest.raises(ConfigError, match=r"rows of 1000 patches .* multiples of 16"):
        mesh_of(freeze(config), model)
    config = mesh_config(context=4, fsdp=2)
    config.data.buckets = ((1026, 1024),)
    with pytest.raises(ConfigError, match=r"rows of 8192, 1026 slots cannot be cut into config\.mesh\.context=4"):
        mesh_of(freeze(config), model)


def test_a_batch_of_0_is_a_row_for_each_device_that_takes_rows():
    config = base_config()
    config.batch_size = 0
    for mesh, rows, accumulation in (({}, 8, 2), ({"context": 2}, 4, 4), ({"fsdp": -1, "data": 1}, 8, 2)):
        config.mesh.update({"data": -1, "fsdp": 1, "context": 1} | mesh)
        fitted = fit_rows(freeze(config))
        assert (fitted.batch_size, fitted.accumulation) == (rows, accumulation)
        assert mesh_of(fitted, Qwen2_5_VLConfig.preset("7b"))[0].size == 8
    on_two = fit_rows(freeze(config), devices=jax.devices()[:2])
    assert (on_two.batch_size, on_two.accumulation, config.batch_size) == (2, 8, 0)
    assert changed_keys(dataclasses.asdict(fitted), on_two) == [], "a run of eight is resumed by two"


def test_attention_is_divided_by_heads_where_that_can_be():
    for heads, key_heads, divided in ((28, 4, True), (16, 2, True), (6, 2, False), (12, 3, False)):
        sizes = {"num_heads": heads, "num_kv_heads": key_heads, "hidden_size": heads * 128}
        model = Qwen2_5_VLConfig.preset("7b", text=sizes, vision={"out_hidden_size": heads * 128})
        config = mesh_config(context=2, tensor=4)
        mesh, stripe = mesh_of(freeze(config), model)
        decoder, vision = make_attention(config.attention, model.text, mesh, stripe)
        assert decoder.sharding.heads == ("tensor" if divided else None)
        assert (decoder.sharding.context, decoder.sharding.stripe) == ("context", 128)
        assert vision.sharding.context == ("context", "tensor")


def test_unknown_attention():
    config = base_config()
    config.attention = "flash"
    choices = "auto, reference, dense, chunked"
    with pytest.raises(ConfigError, match=rf"config\.attention is 'flash'; choose one of: {choices}"):
        check_config(config)


def test_models_hold_what_they_are_given():
    decoder, vision = SpanAttention("chunked"), SpanAttention("reference")
    model = abstract_model(Qwen2_5_VLConfig.preset("tiny"), attention=decoder, vision_attention=vision)
    assert model.decoder.layers.attention == decoder
    assert model.visual.blocks.attention == vision


def test_what_is_frozen_is_kept_in_the_dtype_of_the_computations():
    config = mesh_config(data=8)
    config.optimizer.moments_dtype = "bfloat16"
    shapes = make_program(freeze(config), Qwen2_5_VLConfig.preset("tiny")).shapes
    assert {leaf.dtype for leaf in shapes.frozen.values()} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in shapes.trainable.values()} == {jnp.dtype("float32")}
    moments = shapes.opt_state[1][0]
    assert {leaf.dtype for leaf in (*moments.mu.values(), *moments.nu.values())} == {jnp.dtype("bfloat16")}


def test_compilations_are_counted_by_function():
    def doubled(x: jax.Array) -> jax.Array:
        return x * 2

    step, other = jax.jit(doubled), jax.jit(lambda x: x + 1)
    with count_compilations("doubled") as compilations:
        for size in (2, 3, 2, 3):
            other(step(jnp.zeros(size)))
    assert compilations.count == 2
    assert compilations.seconds > 0
    step(jnp.zeros(4))
    assert compilations.count == 2
