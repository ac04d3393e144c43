"""What holds functions to their annotations in the tests: shapes and dtypes of arrays, and types of all else."""

import typing
from pathlib import Path

import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

ROOMS = Path(__file__).parents[1] / "swjax"

UNCHECKED = {"spec", "tokens"}
"""`StreamSpec` says itself what is wrong with what JSON has given, and a tokenizer is whatever has its methods."""

MODULES = [
    f"swjax.streaming.{file.stem}"
    for file in sorted((ROOMS / "streaming").glob("[a-z]*"))
    if file.stem not in UNCHECKED
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
