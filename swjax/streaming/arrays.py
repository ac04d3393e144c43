"""Types of what is computed on host and device alike, by the namespace that a function is given as `xp`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

XpArray = Any
"""An array of numpy, or of jax, which this room does without for as long as it is numpy's."""

Integer = Any
"""An int, or an int32 scalar of numpy or jax."""

Flag = Any
"""A bool, or a boolean scalar of numpy or jax."""

Ints = Int[XpArray, "L"]
Bools = Bool[XpArray, "L"]

Times = Float[np.ndarray, "_"] | Sequence[float]
"""Seconds, one for each."""

Schedule = int | Sequence[int] | Int[np.ndarray, "F"]
"""Answer tokens after each frame, or a count for each frame."""

Grids = Int[np.ndarray, "_ 3"] | Float[np.ndarray, "0 3"] | Sequence[Sequence[int]]
"""Temporal steps and patch rows and columns of images or videos. numpy makes floats of an empty list."""
