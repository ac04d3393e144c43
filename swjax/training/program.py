"""A run's compiled parts: optimizer, shardings and steps, from configuration to functions. Nothing runs here."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from swjax.attention import AttentionSharding, SpanAttention, implementation_for
from swjax.compiler import WIDTH_TILES
from swjax.mesh import ConstrainOnMesh, batch_sharding, choose_stripe, make_mesh
from swjax.models.adapters import effective_alpha
from swjax.models.config import ModelConfig, TextConfig
from swjax.models.family import abstract_model
from swjax.models.layers import unconstrained
from swjax.models.parameters import split_parameters
from swjax.training.config import ConfigError
from swjax.training.objectives import Batch, find_objective
from swjax.training.optimizer import learning_rate_schedule, make_optimizer
from swjax.training.sections import Config, DataConfig, MeshConfig
from swjax.training.start import scratch_state
from swjax.training.step import Metrics, StepOptions, TrainState, make_eval_step, make_train_step, state_shardings


@dataclass(frozen=True)
class Program:
    """What a run computes.

    Attributes:
        mesh: the devices.
        stripe: slots of the stripes in which rows are dealt out along the context axis, for `put_batch`.
        optimizer: of the trainable parameters.
        shapes: shape, dtype and sharding of every leaf of the state.
        train_step: (state, batch [A, B, ...]) -> (state, metrics); the state given is donated.
        eval_step: (state, batch [B, ...]) -> (sums, counts), by the names that the objective gives.
        fields: what the objective adds to a batch, for `put_batch`.
    """

    mesh: Mesh
    stripe: int | None
    optimizer: optax.GradientTransformation
    shapes: TrainState
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    eval_step: Callable[[TrainState, Batch], tuple[Metrics, Metrics]]
    fields: Mapping[str, str]


def make_program(config: Config, model_config: ModelConfig, *, devices: Sequence[jax.Device] | None = None) -> Program:
    """Builds the program of a configuration.

    Args:
        config: the run's.
        model_config: the model's sizes.
        devices: what it is to run on, all devices by default; those of a topology may be compiled for and not run on.

    Raises:
        ConfigError: the mesh does not fit the devices, the batch does not fit the mesh, or a pattern no parameters.
    """
    token_patches = model_config.geometry.token_patches
    mesh, stripe = open_mesh(config.mesh, config.data, config.batch_size, token_patches, devices=devices)
    # Dense attention is left to the compiler, which takes keys in the order of their slots.
    stripe = None if config.attention == "reference" else stripe
    schedule = learning_rate_schedule(
        config.optimizer.learning_rate,
        steps=config.steps,
        warmup_fraction=config.optimizer.warmup_fraction,
        kind=config.optimizer.schedule,
        final_fraction=config.optimizer.final_fraction,
        decay_fraction=config.optimizer.decay_fraction,
    )
    optimizer = make_optimizer(
        schedule,
        clip_norm=config.optimizer.clip_norm,
        weight_decay=config.optimizer.weight_decay,
        b1=config.optimizer.b1,
        b2=config.optimizer.b2,
        name=config.optimizer.name,
        moments_dtype=config.optimizer.moments_dtype,
        no_decay=config.optimizer.no_decay,
        groups=config.optimizer.groups,
        frozen_layers=_layers(config.frozen_layers, model_config),
    )
    try:
        shapes = jax.eval_shape(functools.partial(scratch_state, model_config, config, optimizer))
    except ValueError as error:  # a pattern that matches no parameter
        raise ConfigError(str(error)) from error
    shardings = state_shardings(mesh, shapes)
    constrain = unconstrained if mesh.size == 1 else ConstrainOnMesh(mesh, pins_layouts=True)
    options = StepOptions(
        compute_dtype=jnp.dtype(config.dtype),
        max_labels=config.data.max_labels,
        constrain=constrain,
        lora_alpha=effective_alpha(config.lora.alpha, config.lora.rank, rslora=config.lora.rslora),
        lora_dropout=config.lora.dropout if config.lora.rank else 0.0,
        seed=config.seed,
        ema=config.optimizer.ema,
        objective=find_objective(config.objective),
        width_tiles=WIDTH_TILES.get(mesh.devices.flat[0].platform, {}),
    )
    decoder, vision = make_attention(config.attention, model_config.text, mesh, stripe)
    model = abstract_model(
        model_config, attention=decoder, vision_attention=vision, constrain=constrain, remat=config.remat
    )
    structure, _ = split_parameters(model)
    return Program(
        mesh,
        stripe,
        optimizer,
        jax.tree.map(_with_sharding, shapes, shardings),
        make_train_step(structure, optimizer, schedule, mesh, shardings, options),
        make_eval_step(structure, mesh, shardings, options),
        options.objective.fields,
    )


def fit_rows(config: Config, *, devices: Sequence[jax.Device] | None = None) -> Config:
    """A configuration with a `batch_size`: where it is 0, a row for each device that takes rows of its own.

    `accumulation` then says how many batches of one row make a step, and is divided by the rows that run at once.

    Args:
        config: the run's.
        devices: what it is to run on, all devices by default.

    Raises:
        ConfigError: the mesh does not fit the devices.
    """
    if config.batch_size:
        return config
    mesh = _mesh(config.mesh, devices)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    return replace(config, batch_size=rows, accumulation=max(1, round(config.accumulation / rows)))


def _mesh(sizes: MeshConfig, devices: Sequence[jax.Device] | None) -> Mesh:
    try:
        return make_mesh(sizes.data, sizes.fsdp, sizes.context, sizes.tensor, slices=sizes.slices, devices=devices)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _layers(numbers: tuple[int, ...], model_config: ModelConfig) -> tuple[int, ...]:
    """The layers that do not train, if the decoder has them."""
    count = model_config.text.num_layers
    for number in numbers:
        if not 0 <= number < count:
            raise ConfigError(f"config.frozen_layers has {number!r}; the decoder's layers are 0 to {count - 1}")
    return numbers


def open_mesh(
    sizes: MeshConfig,
    data: DataConfig,
    batch_size: int,
    token_patches: int,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[Mesh, int | None]:
    """The mesh of a configuration, and the slots of the stripes in which its context axis deals rows out.

    Args:
        sizes: `config.mesh`.
        data: `config.data`, for the shapes of its rows.
        batch_size: rows that run through the model at once.
        token_patches: patches that become one token.
        devices: what it is to run on, all devices by default.

    Raises:
        ConfigError: the mesh does not fit the devices, or the rows do not fit the mesh.
    """
    mesh = _mesh(sizes, devices)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % rows:
        raise ConfigError(
            f"config.batch_size is {batch_size}; config.mesh.data x config.mesh.fsdp = {rows} must divide it, "
            "as each of their devices takes the same number of rows"
        )
    shapes = [(data.max_tokens, data.max_patches), *data.buckets]
    shards = mesh.shape["context"] * mesh.shape["tensor"]
    if odd := data.max_patches % token_patches:
        raise ConfigError(
            f"config.data.max_patches is {data.max_patches}; it must be a multiple of {token_patches}, the patches of "
            f"a token, such as {data.max_patches + token_patches - odd}"
        )
    patches = token_patches * shards
    for _, size in shapes:
        if shards > 1 and size % patches:
            raise ConfigError(
                f"rows of {size} patches cannot be divided over config.mesh.context={mesh.shape['context']} x "
                f"config.mesh.tensor={mesh.shape['tensor']}; make config.data.max_patches and those of config.data."
                f"buckets multiples of {patches}"
            )
    try:
        return mesh, choose_stripe(mesh, [tokens for tokens, _ in shapes])
    except ValueError as error:
        raise ConfigError(f"config.data.max_tokens or config.data.buckets: {error}") from error


def make_attention(
    implementation: str, text: TextConfig, mesh: Mesh, stripe: int | None
) -> tuple[SpanAttention, SpanAttention]:
    """What the decoder and the vision tower attend with, divided over a mesh.

    The decoder's is divided by heads over the tensor axis where that can be, the vision tower's by patches.

    Args:
        implementation: `config.attention`.
        text: the decoder's sizes.
        mesh: the devices.
        stripe: slots of the stripes in which the context axis deals rows out.
    """
    if mesh.size == 1 or implementation == "reference":
        return SpanAttention(implementation), SpanAttention(implementation)
    rows, context, tensor = ("data", "fsdp"), mesh.shape["context"], mesh.shape["tensor"]
    by_heads = text.num_heads % tensor == 0 and 0 in (text.num_kv_heads % tensor, tensor % text.num_kv_heads)
    decoder = AttentionSharding(
        mesh,
        batch=rows,
        heads="tensor" if by_heads else None,
        context="context" if context > 1 else None,
        stripe=stripe,
    )
    vision = AttentionSharding(mesh, batch=rows, context=("context", "tensor") if context * tensor > 1 else None)
    return SpanAttention(implementation, decoder), SpanAttention(implementation, vision)


def batch_shapes(
    rows: tuple[int, int], data: DataConfig, model_config: ModelConfig, program: Program, *, dtype: str
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of a training step's full batch [A, B, ...], to compile the step without having one.

    Args:
        rows: batches that make one step (A), and rows of each (B).
        data: how rows are filled.
        model_config: the model's sizes.
        program: from `make_program`.
        dtype: of the computations.
    """
    of_slots = ("token_ids", "span_start", "span_stop", "labels", *([] if program.stripe is None else ["slots"]))
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(of_slots, (data.max_tokens,))
    shapes |= {"position_ids": (3, data.max_tokens), "video_grid_thw": (data.max_videos, 3)}
    has_features = bool(data.feature_cache_mb)
    width = model_config.vision.hidden_size if has_features else model_config.geometry.patch_dim
    shapes |= {"pixel_values": (data.max_patches, width)}
    shapes |= {"kept": (data.max_patches,)} if data.drop != "none" else {}
    of_pixels = jnp.dtype(dtype) if has_features else jnp.uint8

    def shape(name: str, row: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        whole = (*rows, *row)
        of_field = {"pixel_values": of_pixels, "kept": jnp.bool_}.get(name, jnp.int32)
        sharding = batch_sharding(program.mesh, name, whole, accumulated=True)
        return jax.ShapeDtypeStruct(whole, of_field, sharding=sharding)

    return {name: shape(name, row) for name, row in shapes.items()}


def describe_attention(implementation: str, data: DataConfig, model: ModelConfig, mesh: Mesh, *, dtype: str) -> str:
    """One line that says which implementation of attention a run takes on its devices.

    Args:
        implementation: `config.attention`.
        data: how long its rows are.
        model: the model's sizes.
        mesh: the devices.
        dtype: of the computations.
    """
    device = mesh.devices.flat[0]
    platform = device.platform
    if platform == "gpu":  # JAX's devices say gpu where its compiler says cuda or rocm
        platform = "rocm" if "rocm" in device.client.platform_version else "cuda"
    decoder, vision = (
        implementation_for(platform, queries=row, keys=row, dtype=jnp.dtype(dtype), width=width, sharded=mesh.size > 1)
        if implementation == "auto"
        else implementation
        for row, width in ((data.max_tokens, model.text.head_dim), (data.max_patches, model.vision.head_dim))
    )
    return f"attention on {platform}: {decoder} in the decoder, {vision} in the vision tower"


def _with_sharding(shape: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
