"""The configuration of a training run, from the edge to the run: read once, checked, and frozen.

Files and the command line hold it as a ConfigDict, run folders as JSON. `freeze` makes a `Config` of either, and from
there on functions take that, a section of it, or what they need of it.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

from ml_collections import ConfigDict

from swjax.attention import IMPLEMENTATIONS
from swjax.models.remat import REMAT
from swjax.plain import Json, JsonView
from swjax.storage import StorageError, as_path
from swjax.streaming.spec import check_spec
from swjax.training.objectives import find_objective
from swjax.training.optimizer import OPTIMIZERS, SCHEDULES
from swjax.training.profiling import parse_steps
from swjax.training.sections import DTYPES, Config

Section = TypeVar("Section")

Unread: TypeAlias = ConfigDict | JsonView
"""A configuration as a file, the command line or a run folder has it."""


class ConfigError(ValueError):
    """A configuration that cannot be run, and which key is at fault."""


class Key(NamedTuple):
    """A key of the configuration.

    Attributes:
        path: with dots.
        kind: type of its value.
        default, meaning, free, grows, later: as `swjax.training.sections.key` was told.
    """

    path: str
    kind: Any
    default: Any
    meaning: str
    free: bool
    grows: bool
    later: bool


def _keys(section: type, prefix: str = "") -> Iterator[Key]:
    kinds = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        path, kind = prefix + field.name, kinds[field.name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from _keys(kind, path + ".")
        else:
            assert callable(field.default_factory)
            yield Key(path, kind, field.default_factory(), **field.metadata)


KEYS = tuple(_keys(Config))

_CHOICES: Mapping[str, Iterable[str]] = types.MappingProxyType(
    {
        "dtype": DTYPES,
        "attention": IMPLEMENTATIONS,
        "remat": REMAT,
        "lora.base_dtype": ("", "int8"),
        "optimizer.moments_dtype": DTYPES,
        "optimizer.name": OPTIMIZERS,
        "optimizer.schedule": SCHEDULES,
    }
)

STREAM_KEYS = (
    *("variant", "wait_k", "speaking", "gap", "memory"),
    *("data.fps", "data.min_pixels", "data.max_pixels", "data.drop"),
)
"""The keys that are fields of `StreamSpec`, by the last part of their paths."""

_PATHS = ("run_dir", "init_from", "lora.init_from", "tokenizer", "compilation_cache")
_DATA_PATHS = ("train", "root", "validation")

DEFAULTS: JsonView = types.MappingProxyType({key.path: key.default for key in KEYS})


def base_config() -> ConfigDict:
    """All keys with their defaults, nested by their dots, ready for an experiment to change."""
    nested = dataclasses.asdict(Config())
    config = ConfigDict(nested)
    rank = config.lora.get_ref("rank")
    has_adapters = -(-rank // (rank * rank + 1))  # 1, or 0 for a rank of 0: references know no comparison
    nested["lora"]["rank"] = rank
    nested["optimizer"]["learning_rate"] = DEFAULTS["optimizer.learning_rate"] * (1 + 4 * has_adapters.to_float())
    return ConfigDict(nested)


def freeze(config: Config | Unread) -> Config:
    """A configuration as dataclasses, lists made tuples.

    Raises:
        ConfigError: a key is unknown or missing, or its value is of the wrong type.
    """
    values = flatten(config)
    for key in KEYS:
        _check_type(key, values[key.path])
    return _build(Config, values)


def flatten(config: Config | Unread) -> Json:
    """The values of a configuration by dotted path, in the order of the table.

    Raises:
        ConfigError: a key is unknown or missing.
    """
    if isinstance(config, Config):
        config = dataclasses.asdict(config)
    found = dict(_walk(config.to_dict() if isinstance(config, ConfigDict) else config, ""))
    for path in found:
        if path not in DEFAULTS:
            raise ConfigError(unknown_key(path))
    for path in DEFAULTS:
        if path not in found:
            raise ConfigError(f"config.{path} is missing; start from swjax.training.config.base_config()")
    return {path: found[path] for path in DEFAULTS}


def unknown_key(path: str) -> str:
    """What to say of a key that is not there, such as `optimizer.lr` for `optimizer.learning_rate`."""
    group, _, name = path.rpartition(".")
    known = [key for key in DEFAULTS if group and key.startswith(group + ".")] or list(DEFAULTS)
    names = {key.rpartition(".")[2]: key for key in reversed(known)}  # of two with one name, the first in the table
    by_initials = [key for last, key in names.items() if name == "".join(word[0] for word in last.split("_"))]
    nearest = (by_initials or [names[match] for match in difflib.get_close_matches(name, names, n=1, cutoff=0.0)])[0]
    return f"unknown key config.{path}; the nearest known key is config.{nearest}"


def check_config(config: Config | Unread) -> Config:
    """A configuration as dataclasses (`freeze`), if it can be run.

    Raises:
        ConfigError: names the key, its value and what it may be.
    """
    frozen = freeze(config)
    values = flatten(frozen)
    for path in STREAM_KEYS:
        try:
            check_spec(path.rpartition(".")[2], values[path])
        except ValueError as error:
            raise ConfigError(f"config.{path}: {error}") from None
    try:
        find_objective(values["objective"])
    except ValueError as error:
        raise ConfigError(f"config.objective: {error}") from None
    for path, choices in _CHOICES.items():
        if values[path] not in choices:
            raise ConfigError(f"config.{path} is {values[path]!r}; choose one of: {', '.join(choices)}")
    at_least_one = ("steps", "accumulation", "checkpoint_every", "keep", "eval_every", "log_every")
    for path in (*at_least_one, "data.max_tokens", "data.max_patches", "data.max_labels"):
        if values[path] < 1:
            raise ConfigError(f"config.{path} is {values[path]}; it must be at least 1")
    for path in ("optimizer.learning_rate", "optimizer.decay_fraction", "lora.alpha"):
        if not values[path] > 0:
            raise ConfigError(f"config.{path} is {values[path]}; it must be above 0")
    for path in (
        *(f"optimizer.{name}" for name in ("warmup_fraction", "b1", "b2", "ema")),
        "lora.dropout",
        "data.max_rejected",
    ):
        if not 0 <= values[path] < 1:
            raise ConfigError(f"config.{path} is {values[path]}; it must be at least 0 and below 1")
    for path in (
        "batch_size",
        "epochs",
        "optimizer.clip_norm",
        "optimizer.final_fraction",
        "lora.rank",
        "keep_best",
        "max_bad_steps",
        "watchdog_minutes",
    ):
        if values[path] < 0:
            raise ConfigError(f"config.{path} is {values[path]}; it must be at least 0")
    for path in (*_PATHS, *(f"data.{name}" for name in _DATA_PATHS)):
        for name in values[path].split(","):
            try:
                as_path(name.strip())
            except StorageError as error:
                raise ConfigError(f"config.{path}: {error}") from None
    _check_start(values)
    if values["keep_best"] and not values["data.validation"]:
        raise ConfigError("config.keep_best chooses by validation loss; give config.data.validation, or set it to 0")
    try:
        parse_steps(values["profile.steps"])
    except ValueError as error:
        raise ConfigError(f"config.profile.steps: {error}") from None
    _check_groups(values["optimizer.groups"])
    if not values["data.train"]:
        raise ConfigError("config.data.train is empty; give a manifest or prepared records")
    if not values["init_from"] and not values["model.preset"]:
        raise ConfigError("config.init_from and config.model.preset are both empty; give one, or both if they agree")
    return frozen


def changed_keys(recorded: JsonView, config: Config | Unread) -> list[str]:
    """What keeps a run from being resumed with another configuration: a line for each key that must stay as it was.

    Args:
        recorded: the configuration in the run folder, nested.
        config: the one to resume with.
    """
    later = {key.path: key.default for key in KEYS if key.later}
    old, new = later | dict(_walk(recorded, "")), flatten(config)
    free = {key.path for key in KEYS if key.free or key.grows}
    rows = "batch_size", "accumulation"
    if math.prod(new[path] for path in rows) == math.prod(old.get(path, 0) for path in rows):
        free.update(rows)  # a step has the rows that it had
    return [
        f"config.{path} was {_plain(old.get(path))!r}, is {_plain(new.get(path))!r}"
        for path in dict.fromkeys([*new, *old])
        if path not in free and _plain(old.get(path)) != _plain(new.get(path))
    ]


def describe_keys(config: Config | Unread) -> str:
    """Two lines for each key: how to set it, with its value in this configuration, and its meaning."""
    values = flatten(config)
    return "\n".join(f"  --config.{key.path}={values[key.path]!r}\n      {key.meaning}" for key in KEYS)


def _walk(node: JsonView, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        path = prefix + name
        is_group = isinstance(value, Mapping) and path not in DEFAULTS
        yield from _walk(value, path + ".") if is_group else [(path, value)]


def _check_start(values: JsonView) -> None:
    for path in ("optimizer.final_fraction", "optimizer.decay_fraction"):
        if values[path] > 1:
            raise ConfigError(f"config.{path} is {values[path]}; it must be at most 1")
    if values["optimizer.name"] != "adamw" and values["optimizer.moments_dtype"] != "float32":
        raise ConfigError("config.optimizer.moments_dtype is of AdamW's moments; leave it at float32 with another rule")
    if values["lora.init_from"] and not values["lora.rank"]:
        raise ConfigError("config.lora.init_from is an adapter to train further; give its rank as config.lora.rank")
    if values["lora.base_dtype"] and not values["lora.rank"]:
        raise ConfigError("config.lora.base_dtype is of weights with adapters; give their rank as config.lora.rank")
    chosen = values["init_checkpoint"]
    if chosen not in ("latest", "best") and not chosen.isdecimal():
        raise ConfigError(f"config.init_checkpoint is {chosen!r}; give latest, best or the step of a checkpoint")


def _check_groups(groups: Iterable[object]) -> None:
    for group in groups:
        if not (
            isinstance(group, tuple | list)
            and len(group) == 2
            and isinstance(group[0], str)
            and isinstance(group[1], int | float)
            and group[1] > 0
        ):
            raise ConfigError(
                f"config.optimizer.groups has {group!r}; give pairs of a regular expression and a factor above 0, such "
                "as (('visual/merger', 0.5),); what is not to train goes into config.frozen"
            )


def _plain(value: object) -> object:
    """A value as JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(value))


def _build(section: type[Section], values: JsonView, prefix: str = "") -> Section:
    kinds = typing.get_type_hints(section)
    return section(
        **{
            name: _build(kind, values, f"{prefix}{name}.")
            if isinstance(kind, type) and dataclasses.is_dataclass(kind)
            else _tupled(values[prefix + name])
            for name, kind in kinds.items()
        }
    )


def _tupled(value: object) -> object:
    return tuple(map(_tupled, value)) if isinstance(value, list | tuple) else value


def _check_type(key: Key, value: object) -> None:
    if not _is_of(value, key.kind):
        name = str(key.kind) if isinstance(key.default, tuple) else type(key.default).__name__
        raise ConfigError(f"config.{key.path} is {value!r}; it must be of type {name}")


def _is_of(value: object, kind: Any) -> bool:
    """Whether a value is of a type, as JSON and the command line write it: a list for a tuple, 1 for 1.0."""
    origin = typing.get_origin(kind)
    if origin is tuple:  # pairs have checks of their own
        item = typing.get_args(kind)[0]
        return isinstance(value, tuple | list) and (bool(typing.get_args(item)) or all(_is_of(v, item) for v in value))
    if origin is not None:
        return isinstance(value, origin)
    return isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
