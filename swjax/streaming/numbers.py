"""Numbers that users give, as the devices can hold them: int32 and float32."""

import numpy as np

LARGEST_COUNT = 2**30
"""The largest count, and the largest first position id: half of int32, so that what is added stays within it."""

LARGEST_REAL = 1e30
"""The largest number that is not whole; its reciprocal is the smallest above zero. Both are normal in float32."""

_REAL = (int, float, np.integer, np.floating)


def whole(name: str, value: object, *, least: int = 0, most: int = LARGEST_COUNT) -> int:
    """An integer within bounds.

    Args:
        name: what the error calls it.
        value: what the user gives, of any type. True and False are no numbers.
        least, most: the bounds, both allowed.

    Raises:
        ValueError: if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {shown(value)}")
    return int(value)


def real(name: str, value: object, *, least: float = -LARGEST_REAL, most: float = LARGEST_REAL) -> float:
    """A finite number within bounds.

    Args:
        name: what the error calls it.
        value: what the user gives, of any type. True and False are no numbers.
        least, most: the bounds, both allowed.

    Raises:
        ValueError: if it is none.
    """
    # A NaN is within no bounds.
    if isinstance(value, bool) or not isinstance(value, _REAL) or not least <= value <= most:
        raise ValueError(f"{name} must be a finite number from {least:g} to {most:g}, got {shown(value)}")
    return float(value)


def shown(value: object) -> str:
    """A value as an error shows it: a number of 400 digits or a whole array would hide the message."""
    try:
        text = repr(value)
    except Exception as error:  # integers of more than 4,300 digits, and whatever else has no representation
        return f"{type(value).__name__} ({error})"
    return text if len(text) <= 100 else f"{text[:80]}... ({type(value).__name__})"
