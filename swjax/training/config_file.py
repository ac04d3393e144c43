"""Configuration files with overrides from the command line."""

from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from swjax.python_file import PythonFileError, call_python_file, find_config
from swjax.storage import AnyPath
from swjax.training.config import DEFAULTS, ConfigError, check_config, flatten, unknown_key
from swjax.training.sections import Config


def load_config(path: str | AnyPath, overrides: Sequence[str] = ()) -> Config:
    """Reads a configuration file, applies overrides to it, and freezes it.

    Args:
        path: a Python file with `get_config()`, such as configs/moving_shapes.py, or the name of one that comes with
            swjax (`swjax.python_file.find_config`).
        overrides: arguments such as "--config.steps=50" or "--config.steps", "50".

    Raises:
        ConfigError: the file cannot be read, an argument is no override, a key is unknown (the nearest known key is
            named), or a value is of the wrong type or not one that the key takes.
    """
    config = _call_get_config(path)
    try:
        flatten(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    _check_names(overrides)
    argv = ["swjax", *overrides]
    values = flags.FlagValues()  # not absl's global ones: a library must not claim the program's flags
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        rest = values(argv)
    except flags.Error as error:
        raise ConfigError(_value_error(str(error))) from error
    if len(rest) > 1:
        raise ConfigError(f"{rest[1]!r} is not an override; write --config.KEY=VALUE")
    return check_config(config)


def _call_get_config(path: str | AnyPath) -> ConfigDict:
    try:
        kind = "configuration file"
        config = call_python_file(find_config(path, kind=kind), "get_config", kind=kind)
    except PythonFileError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path}: get_config() must return a ConfigDict, returned {type(config).__name__}")
    return config


def _check_names(overrides: Sequence[str]) -> None:
    for argument in overrides:
        if not argument.startswith("-"):
            continue  # the value of the argument before it
        name = argument.lstrip("-").split("=", 1)[0]
        if not name.startswith("config."):
            raise ConfigError(f"unknown argument {argument!r}; a key of the configuration is set by --config.KEY=VALUE")
        path = name.removeprefix("config.")
        if any(known.startswith(path + ".") for known in DEFAULTS):
            raise ConfigError(f"config.{path} is a group of keys; set them one by one, --config.{path}.KEY=VALUE")
        if path not in DEFAULTS:
            raise ConfigError(unknown_key(path))


def _value_error(message: str) -> str:
    """Absl's message in the words of this program: it begins with `flag --config.KEY=VALUE: `."""
    message = message.removeprefix("flag --")
    path = message.split("=", 1)[0].removeprefix("config.")
    wanted = f" (its type is {type(DEFAULTS[path]).__name__})" if path in DEFAULTS else ""
    return f"{message}{wanted}"
