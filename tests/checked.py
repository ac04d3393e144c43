"""What holds functions to their annotations in the tests: shapes and dtypes of arrays, and types of all else."""

import typing
from pathlib import Path

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
        is_pep484_tower=True,  # an int is a float
        # Methods are checked one by one, where Self means nothing.
        hint_overrides=FrozenDict({typing.Self: typing.Any}),
    )
)
