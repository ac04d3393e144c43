"""Numbers that users give: those of `swjax.streaming.numbers`."""

from swjax.streaming.numbers import LARGEST_COUNT, LARGEST_REAL, real, shown, whole

__all__ = ["LARGEST_COUNT", "LARGEST_REAL", "real", "shown", "whole"]
