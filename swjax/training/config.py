"""The configuration of a training run: every key, its default and its meaning, in one table.

`configs/*.py` start from `base_config()` and change what their experiment changes; the command line changes the rest.
Defaults are the paper's where it names a value.
"""

import difflib
import json
import math
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from swjax.attention import IMPLEMENTATIONS
from swjax.models.remat import REMAT
from swjax.storage import StorageError, as_path
from swjax.streaming import StreamSpec, Variant
from swjax.streaming.spec import check_spec
from swjax.training.objectives import DEFAULT_OBJECTIVE, find_objective, objective_names
from swjax.training.optimizer import OPTIMIZERS, SCHEDULES
from swjax.training.profiling import parse_steps

DTYPES = ("float32", "bfloat16")


class ConfigError(ValueError):
    """A configuration that cannot be run, and which key is at fault."""


class Key(NamedTuple):
    """A key of the configuration.

    Attributes:
        path: with dots.
        default: its value unless an experiment changes it.
        meaning: for `swjax train --help`.
        free: whether a run may be resumed with another value.
        grows: whether a run may be resumed with another value, which is the run's from then on.
        later: the key came after the first runs: one that was recorded without it had the default.
    """

    path: str
    default: Any
    meaning: str
    free: bool = False
    grows: bool = False
    later: bool = False


KEYS = (
    Key("run_dir", "runs/default", "folder that the run is written to, and resumed from if it was stopped", free=True),
    Key("seed", 0, "seed of the parameters, of the order of the examples and of their questions"),
    Key("variant", StreamSpec.variant, f"position design: {', '.join(Variant)}"),
    Key("wait_k", StreamSpec.wait_k, "answer tokens spoken after each frame"),
    Key(
        "speaking",
        StreamSpec.speaking,
        "when to speak: wait_k, or decide: after each frame a token of silence, or the sentences that are due by then",
        later=True,
    ),
    Key("gap", StreamSpec.gap, "first position id of the answer (gipe)"),
    Key(
        "memory",
        StreamSpec.memory,
        "what streams of the model keep unless told otherwise, such as window:sources=4096; training keeps all",
        free=True,
        later=True,
    ),
    Key("init_from", "", "what to start from: a Hugging Face folder or Hub id, or a run's folder; '' is from scratch"),
    Key(
        "init_checkpoint",
        "latest",
        "of a run to start from: latest, best (the lowest validation loss) or the step of a checkpoint",
        later=True,
    ),
    Key("model.preset", "", "size: tiny, 3b, 7b, 32b, 72b; '' takes the size of init_from"),
    Key("model.overrides", {}, "fields of the model's configuration to change, such as {'text': {'num_layers': 2}}"),
    Key("tokenizer", "", "tokenizer folder; '' takes init_from's, or that of Moving Shapes from scratch"),
    Key("objective", DEFAULT_OBJECTIVE, f"what is made small: {', '.join(objective_names())}", later=True),
    Key("frozen", ("visual/(?!merger)",), "regular expressions; parameters whose path one matches do not train"),
    Key("dtype", "bfloat16", f"dtype of the computations, {' or '.join(DTYPES)}; what trains is kept in float32"),
    Key("attention", "auto", f"implementation of attention: {', '.join(IMPLEMENTATIONS)}", free=True),
    Key("remat", "full", f"what a layer's backward pass computes again to save memory: {', '.join(REMAT)}", free=True),
    Key(
        "data.train",
        "",
        "training data: files or folders of docs/data.md, or records and their split (FOLDER:train); several by commas",
    ),
    Key(
        "data.format",
        "auto",
        "format of data that is no records: auto, which looks, or a name of docs/data.md",
        later=True,
    ),
    Key("data.weights", (), "how often each of data.train is drawn from; () = alike"),
    Key("data.root", "", "folder that the videos of manifests must lie in; '' = each manifest's own", free=True),
    Key("data.validation", "", "validation data, as data.train; '' for no validation", free=True),
    Key("data.fps", StreamSpec.fps, "video frames taken a second; Qwen2.5-VL takes two of them as one frame"),
    Key("data.min_pixels", StreamSpec.min_pixels, "smallest area of a resized video frame, at most max_pixels"),
    Key(
        "data.max_pixels",
        StreamSpec.max_pixels,
        "largest area of a resized video frame, one token (784 in Qwen2.5-VL) or more",
    ),
    Key(
        "data.drop",
        StreamSpec.drop,
        "tokens of frames that are dropped, in training and in streams: none, or a rule such as dtd_pixels:tau=0.1",
        later=True,
    ),
    Key("data.max_tokens", 8192, "tokens of a row; longer examples are skipped"),
    Key(
        "data.max_patches",
        30 * 1024,
        "patches of a row, whole tokens (of 4 in Qwen2.5-VL, whose frames take area / 196); longer videos are skipped",
    ),
    Key("data.max_labels", 256, "labelled tokens of a row; examples with longer answers are skipped"),
    Key(
        "data.batching",
        "pad",
        "how rows are filled: pad (one example each), pack (all that fit) or bucket (by size; in one process)",
    ),
    Key("data.max_videos", 1, "videos of a row; packing needs more than one"),
    Key(
        "data.window",
        64,
        "examples that packing and bucketing choose from at a time; bucketing needs a multiple of a step's rows",
    ),
    Key(
        "data.buckets",
        (),
        "(tokens, patches) of the buckets, growing up to max_tokens and max_patches; patches in whole tokens",
    ),
    Key("data.max_rejected", 0.05, "share of unusable examples that stops the run", free=True),
    Key("data.workers", 0, "processes that decode videos; 0 decodes in threads", free=True),
    Key("data.cache_mb", 0, "megabytes of decoded videos that each process keeps from epoch to epoch", free=True),
    Key(
        "data.feature_cache_mb",
        0,
        "megabytes of a frozen vision tower's features that are kept from epoch to epoch; 0 encodes each time",
        later=True,
    ),
    Key(
        "steps", 313, "optimizer steps of the whole run, where epochs is 0; a run may be resumed with more", grows=True
    ),
    Key("epochs", 0.0, "passes over the training data, which set the steps; 0 = as steps says", grows=True, later=True),
    Key("batch_size", 4, "rows that run through the model at once, over all devices; 0 = one for each device"),
    Key(
        "accumulation",
        16,
        "batches whose gradients make one step: batch_size x accumulation rows, with which a run may be resumed",
    ),
    Key("optimizer.name", "adamw", f"rule of the updates: {', '.join(OPTIMIZERS)}", later=True),
    Key("optimizer.learning_rate", 2e-5, "peak learning rate; unless it is given, 1e-4 where adapters train"),
    Key("optimizer.schedule", "cosine", f"learning rate after its warm-up: {', '.join(SCHEDULES)}", later=True),
    Key("optimizer.final_fraction", 0.0, "learning rate at the last step, as a part of the peak", later=True),
    Key("optimizer.decay_fraction", 0.1, "part of the steps in which the schedule wsd falls, the last", later=True),
    Key("optimizer.warmup_fraction", 0.03, "part of the steps in which the learning rate rises, the first"),
    Key("optimizer.weight_decay", 0.0, "weight decay of matrices"),
    Key("optimizer.clip_norm", 1.0, "largest global norm of the gradient; 0 clips nothing"),
    Key("optimizer.b1", 0.9, "decay of the first moment"),
    Key("optimizer.b2", 0.999, "decay of the second moment (Lion: 0.99)"),
    Key("optimizer.moments_dtype", "float32", f"dtype that AdamW's moments are kept in, {' or '.join(DTYPES)}"),
    Key("optimizer.no_decay", (), "regular expressions; those that one matches do not decay, as norms and biases"),
    Key("optimizer.groups", (), "(regular expression, factor of the learning rate), such as (('visual/merger', 0.5),)"),
    Key("optimizer.ema", 0.0, "decay of a running mean of the parameters that evaluation and export use; 0 = none"),
    Key("lora.rank", 0, "rank of adapters, which then train alone, whatever frozen says; 0 trains the weights"),
    Key("lora.alpha", 16.0, "what an adapter adds is scaled by alpha / rank"),
    Key("lora.rslora", False, "scale by alpha / square root of the rank instead", later=True),
    Key(
        "lora.targets",
        ("decoder/layers/",),
        "regular expressions, or names such as q_proj; weights of linear layers that one matches adapt",
    ),
    Key(
        "lora.additional",
        (),
        "regular expressions; parameters that train beside the adapters, such as visual/merger",
        later=True,
    ),
    Key(
        "lora.base_dtype",
        "",
        "int8 holds adapted weights in 8 bits with a scale for each output; '' in dtype",
        later=True,
    ),
    Key("lora.init_from", "", "adapter in PEFT's form to start from, of this rank and alpha", later=True),
    Key("frozen_layers", (), "numbers of the decoder's layers, from 0, that do not train", later=True),
    Key("checkpoint_every", 50, "steps between checkpoints; the last step always has one", free=True),
    Key("keep", 2, "checkpoints kept, the latest", free=True),
    Key("keep_best", 0, "checkpoints kept beside them, those of the lowest validation loss", free=True),
    Key("max_bad_steps", 10, "steps that may be skipped as NaN or infinite; one more stops the run", free=True),
    Key(
        "watchdog_minutes",
        30.0,
        "minutes without the end of a step after which the stacks of all threads are written to the log; 0 = never",
        free=True,
        later=True,
    ),
    Key("eval_every", 50, "steps between validations; the last step always has one", free=True),
    Key("compilation_cache", "", "folder that keeps compiled programs for the next start; '' for none", free=True),
    Key("profile.steps", "", "first and last step of a trace for the profiler, such as 10:13; '' for none", free=True),
    Key("log_every", 10, "steps between lines of the log, where there is no terminal for a bar", free=True),
    Key("wandb.project", "", "project of Weights & Biases to report to; '' for none", free=True),
    Key("wandb.entity", "", "user or team of that project; '' for your own", free=True),
    Key("wandb.name", "", "name of the run there; '' for that of its folder", free=True),
    Key("wandb.tags", (), "tags of the run there", free=True),
    Key("mesh.data", -1, "devices along the data axis, which repeats parameters; -1 = those left", free=True),
    Key("mesh.fsdp", 1, "devices along the fsdp axis, which shards parameters; -1 = those left", free=True),
    Key("mesh.context", 1, "devices along the context axis, which cuts rows; -1 = those left", free=True),
    Key("mesh.tensor", 1, "devices along the tensor axis, which cuts heads and features; -1 = those left", free=True),
    Key("mesh.slices", -1, "TPU slices, which the data axis runs over; -1 = as many as the devices are of", free=True),
)

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

DEFAULTS: Mapping[str, Any] = types.MappingProxyType({key.path: key.default for key in KEYS})


def base_config() -> ConfigDict:
    """All keys with their defaults, nested by their dots, ready for an experiment to change."""
    nested: dict[str, Any] = {}
    for key in KEYS:
        *groups, name = key.path.split(".")
        node = nested
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = key.default
    config = ConfigDict(nested)
    rank = config.lora.get_ref("rank")
    has_adapters = -(-rank // (rank * rank + 1))  # 1, or 0 for a rank of 0: references know no comparison
    nested["lora"]["rank"] = rank
    nested["optimizer"]["learning_rate"] = DEFAULTS["optimizer.learning_rate"] * (1 + 4 * has_adapters.to_float())
    return ConfigDict(nested)


def flatten(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration by dotted path, in the order of the table.

    Raises:
        ConfigError: a key is unknown or missing.
    """
    plain = config.to_dict() if isinstance(config, ConfigDict) else config
    found = dict(_walk(plain, ""))
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


def check_config(config: ConfigDict | Mapping[str, Any]) -> None:
    """Looks whether a configuration can be run.

    Raises:
        ConfigError: names the key, its value and what it may be.
    """
    values = flatten(config)
    for path, default in DEFAULTS.items():
        _check_type(path, values[path], default)
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
    for path in (*(f"optimizer.{name}" for name in ("warmup_fraction", "b1", "b2", "ema")), "data.max_rejected"):
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


def changed_keys(recorded: Mapping[str, Any], config: ConfigDict | Mapping[str, Any]) -> list[str]:
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


def describe_keys(config: ConfigDict | Mapping[str, Any]) -> str:
    """Two lines for each key: how to set it, with its value in this configuration, and its meaning."""
    values = flatten(config)
    return "\n".join(f"  --config.{key.path}={values[key.path]!r}\n      {key.meaning}" for key in KEYS)


def _walk(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        path = prefix + name
        is_group = isinstance(value, Mapping) and path not in DEFAULTS
        yield from _walk(value, path + ".") if is_group else [(path, value)]


def _check_start(values: Mapping[str, Any]) -> None:
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


def _check_groups(groups: Any) -> None:
    for group in groups:
        is_pair = isinstance(group, tuple | list) and len(group) == 2 and isinstance(group[0], str)
        if not is_pair or not isinstance(group[1], int | float) or not group[1] > 0:
            raise ConfigError(
                f"config.optimizer.groups has {group!r}; give pairs of a regular expression and a factor above 0, such "
                "as (('visual/merger', 0.5),); what is not to train goes into config.frozen"
            )


def _plain(value: Any) -> Any:
    """A value as JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(value))


def _check_type(path: str, value: Any, default: Any) -> None:
    expected: tuple[type, ...] = (int, float) if isinstance(default, float) else (type(default),)
    if isinstance(default, tuple):
        expected = (tuple, list)
    if not isinstance(value, expected) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise ConfigError(f"config.{path} is {value!r}; it must be of type {type(default).__name__}")
