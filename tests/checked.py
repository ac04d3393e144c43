"""What holds functions to their annotations in the tests: shapes and dtypes of arrays, and types of all else."""

import importlib.util
import typing
from fnmatch import fnmatch
from pathlib import Path

import jaxtyping
import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

ROOMS = Path(importlib.util.find_spec("swjax").origin).parent  # without importing it; it may be installed elsewhere

UNCHECKED = {
    "streaming/spec",  # `StreamSpec` says itself what is wrong with what JSON has given
    "streaming/tokens",  # a tokenizer is whatever has its methods
    *(f"attention/{kernel}" for kernel in ("gpu*", "mosaic*", "tpu*")),  # references of Pallas are of many types
    *(f"attention/{front}" for front in ("span", "cached")),  # say themselves what is wrong
    # so do those who are given what a user has
    *(f"inference/{front}" for front in ("batch_engine", "feed", "frames", "prompt", "sampler", "session", "settings")),
    *(f"inference/{front}" for front in ("stream", "voice")),
}

FILES = [
    file.relative_to(ROOMS).with_suffix("")
    for room in ("streaming", "attention", "models", "inference")
    for file in sorted((ROOMS / room).rglob("[a-z]*.py"))
]
MODULES = [
    f"swjax.{str(file).replace('/', '.')}"
    for file in FILES
    if not any(fnmatch(str(file), pattern) for pattern in UNCHECKED)
]


def install() -> None:
    """Has these modules checked whenever they are imported from now on."""
    import jax  # here, as it reads the variables that conftest.py sets once

    jaxtyping.Array = jax.Array | np.ndarray | np.generic  # what takes the first takes the others
    jaxtyping.install_import_hook(MODULES, "checked.check")


check = beartype(
    conf=BeartypeConf(
        hint_overrides=FrozenDict(
            {
                int: int | np.integer,
                float: float | int | np.floating | np.integer,
                bool: bool | np.bool_,
                typing.Self: typing.Any,  # methods are checked one by one, where Self means nothing
            }
        ),
    )
)
