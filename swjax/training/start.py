"""Where a run starts: its model's configuration, and its state before the first step."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from rich.progress import track

from swjax.data.decisions import add_decisions
from swjax.data.tokenizer import load_tokenizer
from swjax.hub.peft import open_adapter
from swjax.hub.progress import STDERR
from swjax.models.adapters import choose_targets, in_int8, is_adapter, new_adapters, new_magnitudes, scale_path
from swjax.models.config import ModelConfig
from swjax.models.family import family_of, preset_config
from swjax.models.parameters import Leaves, Parameters, match_all, split_parameters
from swjax.models.stored import place
from swjax.plain import JsonView
from swjax.runs.streaming_model import StoredModel
from swjax.streaming import SpecialTokens
from swjax.streaming.tokens import Tokenizer
from swjax.training.config import ConfigError
from swjax.training.optimizer import split_frozen
from swjax.training.sections import Config, LoraConfig, ModelChoice
from swjax.training.step import TrainState, initial_state

_ADDITIONAL = "lora.additional"


def choose_tokenizer(folder: str, origin: StoredModel | None, preset: str, *, decides: bool) -> Tokenizer:
    """Loads the tokenizer that the configuration names: its own, else that of `init_from`, else Moving Shapes'.

    Args:
        folder: `config.tokenizer`; '' names none.
        origin: what the run starts from; None where that is scratch.
        preset: the model's size, from scratch.
        decides: whether the model is to decide when to speak; the tokenizer gets the tokens for that, if it lacks them.

    Raises:
        ConfigError: the preset is unknown.
        TokenizerError: the tokenizer cannot be used, or does not chat as the model does.
    """
    if origin is None:
        tokenizer = load_tokenizer(folder or None, _find_preset(preset).chat)
    else:
        tokenizer = load_tokenizer(folder or origin.tokenizer, origin.config.chat)
    if decides:
        add_decisions(tokenizer)
    return tokenizer


def choose_model(
    choice: ModelChoice, origin: StoredModel | None, tokenizer: Tokenizer, *, init_from: str = ""
) -> ModelConfig:
    """The model's configuration: that of what the run starts from, else the preset with the tokenizer's vocabulary.

    Args:
        choice: `config.model`.
        origin: what the run starts from; None where that is scratch.
        tokenizer: from `choose_tokenizer`.
        init_from: name of the origin, for messages.

    Raises:
        ConfigError: a field or preset is unknown, the preset is not that of `init_from`, or the tokenizer and the
            checkpoint do not belong together.
    """
    if origin is None:
        return _preset(choice.preset, choice.overrides, tokenizer)
    if choice.overrides:
        raise ConfigError("config.model.overrides changes a model from scratch only; init_from brings its own sizes")
    _check_tokenizer(origin.config, tokenizer)
    if choice.preset and _sizes(_find_preset(choice.preset)) != _sizes(origin.config):
        raise ConfigError(
            f"config.model.preset={choice.preset!r} is not the size of config.init_from={init_from!r}; "
            "set config.model.preset='' to take the checkpoint's"
        )
    return origin.config


def scratch_state(model_config: ModelConfig, config: Config, optimizer: optax.GradientTransformation) -> TrainState:
    """The state of a new model. Pure, for `jax.jit` and `jax.eval_shape`.

    Args:
        model_config: the model's sizes.
        config: the run's.
        optimizer: of the trainable parameters.
    """
    parameters = split_parameters(family_of(model_config).model(model_config, rngs=nnx.Rngs(config.seed)))[1]
    if config.lora.rank:
        beside, frozen = split_additional(parameters, config.lora.additional, config.lora.targets)
        trainable = make_adapters(parameters, config.lora, seed=config.seed) | beside
    else:
        trainable, frozen = split_frozen(parameters, config.frozen)
    frozen = optax.tree.cast(frozen, jnp.dtype(config.dtype))
    if config.lora.base_dtype:
        frozen = in_int8(frozen, choose_targets(config.lora.targets, parameters))
    return initial_state(trainable, frozen, optimizer, ema=config.optimizer.ema)


def make_adapters(parameters: Leaves, lora: LoraConfig, *, seed: int) -> Parameters:
    """The adapters that a configuration asks for, before the first step. Pure.

    Args:
        parameters: of the model, by path.
        lora: with a rank above 0.
        seed: of their values.

    Raises:
        ValueError: `config.lora.targets` are not ones that can be adapted.
    """
    targets = choose_targets(lora.targets, parameters)
    shapes = {path: tuple(leaf.shape) for path, leaf in parameters.items()}
    made = new_adapters(shapes, targets, rank=lora.rank, key=jax.random.key(seed))
    return made | new_magnitudes(parameters, targets) if lora.dora else made


def split_additional(
    parameters: Leaves, additional: Sequence[str], targets: Sequence[str]
) -> tuple[Parameters, Parameters]:
    """Divides a model's parameters into those that train beside its adapters, and those that do not train.

    Args:
        parameters: of the model, by path.
        additional, targets: `config.lora.additional` and `config.lora.targets`.

    Raises:
        ValueError: an expression of `config.lora.additional` is not valid, matches nothing or an adapted weight.
    """
    chosen = match_all(additional, parameters, key=_ADDITIONAL)
    both = chosen.intersection(choose_targets(targets, parameters))
    if both:
        raise ValueError(f"config.{_ADDITIONAL}: {min(both)} has an adapter; leave it out of one of the two")
    beside = {path: leaf for path, leaf in parameters.items() if path in chosen}
    return beside, {path: leaf for path, leaf in parameters.items() if path not in chosen}


def _read_adapters(model_config: ModelConfig, lora: LoraConfig, shapes: TrainState) -> Parameters:
    """Those of `config.lora.init_from`, and what was trained beside them."""
    folder = lora.init_from
    everything = {path: leaf.shape for path, leaf in {**shapes.trainable, **shapes.frozen}.items()}
    found = open_adapter(folder, model_config, everything)
    wanted = {path: leaf for path, leaf in shapes.trainable.items() if is_adapter(path)}
    said, its = (lora.rank, lora.alpha, lora.rslora, lora.dora), (found.rank, found.alpha, found.rslora, found.dora)
    if said != its:
        raise ConfigError(
            f"config.lora.rank, alpha, rslora and dora are {said}, and those of the adapter {folder} are {its}; "
            "make them the same"
        )
    beside = {path for path in found.parameters if not is_adapter(path)}
    if odd := sorted((found.parameters.keys() - beside) ^ wanted.keys()):
        raise ConfigError(f"config.lora.targets and the adapter {folder} differ in {odd[0]} and {len(odd) - 1} more")
    if odd := sorted(beside - shapes.trainable.keys()):
        raise ConfigError(f"the adapter {folder} was trained with {odd[0]} beside it; name it in config.{_ADDITIONAL}")
    places = {path: shapes.trainable[path] for path in found.parameters}
    return {path: place(found.parameters[path], leaf.sharding, leaf.dtype) for path, leaf in places.items()}


def make_state(
    model_config: ModelConfig,
    config: Config,
    optimizer: optax.GradientTransformation,
    shapes: TrainState,
    origin: StoredModel | None = None,
) -> TrainState:
    """The state before the first step, laid out on the mesh: a warm start, else from scratch.

    Args:
        model_config: from `choose_model`.
        config: the run's.
        optimizer: of the trainable parameters.
        shapes: shape, dtype and sharding of every leaf of the state.
        origin: what the run starts from; None where that is scratch.

    Raises:
        CheckpointError: weights of `origin`, or the adapter `config.lora.init_from`, cannot be read.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    if origin is None:
        start = functools.partial(scratch_state, model_config, config, optimizer)
        # It runs once: on a CPU, compiling it well takes seconds and saves milliseconds.
        cheap = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        return jax.jit(start, out_shardings=shardings, compiler_options=cheap)()
    places = {**shardings.trainable, **shardings.frozen}
    dtypes = {path: leaf.dtype for path, leaf in {**shapes.trainable, **shapes.frozen}.items()}
    stored = origin.parameters
    parameters: Parameters = {}
    for path in track(dtypes, "loading weights", transient=True, console=STDERR):
        if path in stored and dtypes[path] == jnp.int8:  # one at a time: what is whole is gone before the next is read
            whole = {path: place(stored[path], places[path], jnp.dtype(config.dtype))}
            out = {name: places[name] for name in (path, scale_path(path))}
            parameters |= jax.jit(functools.partial(in_int8, targets=[path]), out_shardings=out)(whole)
        elif path in stored:
            parameters[path] = place(stored[path], places[path], dtypes[path])
    if config.lora.rank:
        beside, frozen = split_additional(parameters, config.lora.additional, config.lora.targets)
        if config.lora.init_from:
            adapters = _read_adapters(model_config, config.lora, shapes)
        else:
            make = functools.partial(make_adapters, lora=config.lora, seed=config.seed)
            places = {path: sharding for path, sharding in shardings.trainable.items() if is_adapter(path)}
            adapters = jax.jit(make, out_shardings=places)(parameters)
        trainable = beside | adapters
    else:
        trainable, frozen = split_frozen(parameters, config.frozen)
    warm = functools.partial(initial_state, optimizer=optimizer, ema=config.optimizer.ema)
    return jax.jit(warm, out_shardings=shardings, donate_argnums=(0, 1))(trainable, frozen)


def _preset(name: str, overrides: JsonView, tokenizer: Tokenizer) -> ModelConfig:
    special = SpecialTokens.from_tokenizer(tokenizer, _find_preset(name).chat)
    of_the_tokenizer = {
        "video_token_id": special.video_pad,
        "image_token_id": special.image_pad,
        "vision_start_token_id": special.vision_start,
        "vision_end_token_id": special.vision_end,
        "bos_token_id": tokenizer.pad_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        "eos_token_id": special.im_end,
    }
    text = {"vocab_size": len(tokenizer)} | dict(overrides.get("text", {}))
    return _find_preset(name, **{**of_the_tokenizer, **overrides, "text": text})


def _find_preset(name: str, **overrides: Any) -> ModelConfig:
    try:
        return preset_config(name, **overrides)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"config.model: {error}") from error


def _check_tokenizer(model: ModelConfig, tokenizer: Tokenizer) -> None:
    special = SpecialTokens.from_tokenizer(tokenizer, model.chat)
    if special.video_pad != model.video_token_id or len(tokenizer) > model.text.vocab_size:
        raise ConfigError(
            f"the tokenizer in {tokenizer.name_or_path} does not belong to config.init_from: it has {len(tokenizer)} "
            f"tokens and {model.chat.video_pad} {special.video_pad}, the model {model.text.vocab_size} and "
            f"{model.video_token_id}; set config.tokenizer"
        )


def _sizes(model: ModelConfig) -> tuple[int, ...]:
    text, vision = model.text, model.vision
    return text.hidden_size, text.intermediate_size, text.num_layers, text.num_heads, vision.depth, vision.hidden_size
