"""What the tests of the files for PyTorch share: what the model was trained to do, and pictures that it sees."""

import numpy as np

from swjax.streaming import StreamSpec

SPEC = StreamSpec(variant="group", max_pixels=20_000, max_tail=6)  # by an alias


def make_pictures(count: int, *, uneven: bool = False) -> list[np.ndarray]:
    """Noise; uneven, every second frame is taller."""
    rng = np.random.default_rng(count)
    return [
        rng.integers(0, 256, (84 if uneven and number // 2 % 2 else 56, 84, 3), np.uint8) for number in range(count)
    ]
