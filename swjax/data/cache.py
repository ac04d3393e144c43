"""Patches of videos kept in memory, so that small data sets are decoded once and not once an epoch."""

import threading
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from swjax.data.example import Picture, Video

Patches = tuple[UInt8[np.ndarray, "patches pixels"], tuple[int, int, int]]


class PatchCache:
    """Keeps what is loaded first, up to a number of bytes; the rest is loaded each time.

    Epochs meet every video once, so dropping the oldest for the newest would drop each just before it comes again.
    A copy of the cache in another process starts empty. Files are taken not to change while it lives.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._kept: dict[Picture | Video, Patches] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["PatchCache"], tuple[int]]:
        return PatchCache, (self.max_bytes,)

    def get(self, video: Picture | Video, load: Callable[[Picture | Video], Patches]) -> Patches:
        """The patches and grid of a video, from memory or loaded; what `load` raises is passed on."""
        kept = self._kept.get(video)
        if kept is not None:
            return kept
        loaded = load(video)
        with self._lock:
            if video not in self._kept and self.num_bytes + loaded[0].nbytes <= self.max_bytes:
                self._kept[video] = loaded
                self.num_bytes += loaded[0].nbytes
        return loaded
