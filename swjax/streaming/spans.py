"""Key spans: the keys that a query sees, as two integers."""

from typing import Any, NamedTuple

import numpy as np


class KeySpans(NamedTuple):
    """The half-open range of keys [start, stop) that each query sees; an empty range sees nothing.

    A tuple of two arrays, numpy or jax, and so a pytree.

    Attributes:
        start: int32[..., L], first key that the query sees.
        stop: int32[..., L], one past the last.
    """

    start: Any
    stop: Any

    def to_mask(self, num_keys: int) -> Any:
        """The same as a dense mask, for tests and pictures.

        Returns:
            bool[..., L, num_keys], true where the query (row) sees the key (column).
        """
        keys = np.arange(num_keys, dtype=np.int32)
        return (keys >= self.start[..., None]) & (keys < self.stop[..., None])
