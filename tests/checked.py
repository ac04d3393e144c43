"""What holds functions to their annotations in the tests: shapes and dtypes of arrays, and types of all else."""

import typing
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

ROOMS = Path(__file__).parents[1] / "swjax"

UNCHECKED = {
    "streaming/spec",  # `StreamSpec` says itself what is wrong with what JSON has given
    "streaming/tokens",  # a tokenizer is whatever has its methods
    *(f"attention/{kernel}" for kernel in ("gpu*", "mosaic*", "tpu*")),  # references of Pallas are of many types
    *(f"attention/{front}" for front in ("span", "cached")),  # take arrays of numpy as well
}

MODULES = [
    f"swjax.{room}.{file.stem}"
    for room in ("streaming", "attention")
    for file in sorted((ROOMS / room).glob("[a-z]*"))
    if not any(fnmatch(f"{room}/{file.stem}", pattern) for pattern in UNCHECKED)
]

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
