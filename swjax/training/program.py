"""A run's compiled parts: optimizer, shardings and steps, from configuration to functions. Nothing runs here."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from swjax.attention import SpanAttention, implementation_for
from swjax.conversion.parameters import split_parameters
from swjax.models.qwen2_5_vl import Qwen2_5_VLConfig
from swjax.models.qwen2_5_vl.model import abstract_model
from swjax.training.config import ConfigError
from swjax.training.loss import Batch
from swjax.training.mesh import make_mesh
from swjax.training.optimizer import learning_rate_schedule, make_optimizer
from swjax.training.start import scratch_state
from swjax.training.step import Metrics, StepOptions, TrainState, make_eval_step, make_train_step, state_shardings


@dataclass(frozen=True)
class Program:
    """What a run computes.

    Attributes:
        mesh: the devices.
        optimizer: of the trainable parameters.
        shapes: shape, dtype and sharding of every leaf of the state.
        train_step: (state, batch [A, B, ...]) -> (state, metrics); the state given is donated.
        eval_step: (state, batch [B, ...]) -> (summed loss, number of labels).
    """

    mesh: Mesh
    optimizer: optax.GradientTransformation
    shapes: TrainState
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    eval_step: Callable[[TrainState, Batch], tuple[Float[Array, ""], Float[Array, ""]]]


def make_program(config: ConfigDict, model_config: Qwen2_5_VLConfig) -> Program:
    """Builds the program of a configuration.

    Raises:
        ConfigError: the mesh does not fit the devices, the batch does not fit the mesh, or a pattern no parameters.
    """
    try:
        mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if config.batch_size % mesh.size:
        raise ConfigError(
            f"config.batch_size is {config.batch_size}; the {mesh.size} devices must divide it, "
            "as each takes the same number of rows"
        )
    schedule = learning_rate_schedule(
        config.optimizer.learning_rate, steps=config.steps, warmup_fraction=config.optimizer.warmup_fraction
    )
    optimizer = make_optimizer(
        schedule,
        clip_norm=config.optimizer.clip_norm,
        weight_decay=config.optimizer.weight_decay,
        b1=config.optimizer.b1,
        b2=config.optimizer.b2,
        no_decay=config.optimizer.no_decay,
        groups=config.optimizer.groups,
    )
    try:
        shapes = jax.eval_shape(functools.partial(scratch_state, model_config, config, optimizer))
    except ValueError as error:  # a pattern that matches no parameter
        raise ConfigError(str(error)) from error
    shardings = state_shardings(mesh, shapes, optimizer)
    options = StepOptions(
        compute_dtype=jnp.dtype(config.dtype),
        max_labels=config.data.max_labels,
        lora_alpha=config.lora.alpha,
        ema=config.optimizer.ema,
    )
    attention = SpanAttention(config.attention)
    structure, _ = split_parameters(abstract_model(model_config, attention=attention, vision_attention=attention))
    return Program(
        mesh,
        optimizer,
        jax.tree.map(_with_sharding, shapes, shardings),
        make_train_step(structure, optimizer, schedule, mesh, shardings, options),
        make_eval_step(structure, mesh, shardings, options),
    )


def describe_attention(config: ConfigDict, device: jax.Device) -> str:
    """One line that says which implementation of attention a run takes on its devices.

    Args:
        config: the run's.
        device: one of the devices.
    """
    platform = device.platform
    if platform == "gpu":  # JAX's devices say gpu where its compiler says cuda or rocm
        platform = "rocm" if "rocm" in device.client.platform_version else "cuda"
    decoder, vision = (
        implementation_for(platform, queries=row, keys=row) if config.attention == "auto" else config.attention
        for row in (config.data.max_tokens, config.data.max_patches)
    )
    return f"attention on {platform}: {decoder} in the decoder, {vision} in the vision tower"


def _with_sharding(shape: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
