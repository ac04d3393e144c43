"""What chips can do, as their makers state it."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Chip:
    """One device as JAX counts them.

    Attributes:
        flops: dense bfloat16 operations a second.
        memory: bytes of high-bandwidth memory.
        memory_bandwidth: bytes a second.
        link_bandwidth: bytes a second that a chip sends to its neighbours over all of its links together.
        network_bandwidth: bytes a second of the network between slices, for each chip; None where it is not stated.
        cores: over which the `parallel` axes of a kernel's grid are divided.
        multiply_adds: of the matrix units of one core in a cycle, in bfloat16; None where cycles are not known.
    """

    flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float | None = None
    cores: int = 1
    multiply_adds: int | None = None

    @property
    def clock(self) -> float | None:
        """Cycles a second, at which the matrix units do what the maker states."""
        return None if self.multiply_adds is None else self.flops / (2 * self.cores * self.multiply_adds)


CHIPS: Mapping[str, Chip] = MappingProxyType(
    {
        "TPU v5 lite": Chip(197e12, 16 * 2**30, 819e9, 1600e9 / 8, 6.4e12 / 256 / 8, 1, 4 * 128**2),
        "TPU v5": Chip(459e12, 95 * 2**30, 2765e9, 4800e9 / 8, 50e9 / 8, 2, 4 * 128**2),
        "TPU v6 lite": Chip(918e12, 32 * 2**30, 1640e9, 3584e9 / 8, 100e9 / 8, 1, 4 * 256**2),
        "TPU7x": Chip(
            2307e12 / 2, 96 * 2**30, 7380e9 / 2, 9600e9 / 16, 100e9 / 16
        ),  # half a chip, which is what JAX counts
        "NVIDIA H100": Chip(989e12, 80e9, 3350e9, 450e9),
        "NVIDIA H200": Chip(989e12, 141e9, 4800e9, 450e9),
    }
)
"""By the beginning of the name that JAX gives a device, the longest first to match."""


def chip_of(device_kind: str) -> Chip:
    """The chip of a device.

    Args:
        device_kind: `jax.Device.device_kind`.

    Raises:
        ValueError: if it is not in the table.
    """
    for name in sorted(CHIPS, key=len, reverse=True):
        if device_kind.startswith(name):
            return CHIPS[name]
    raise ValueError(f"nothing is known of {device_kind!r}; the chips that are known are {', '.join(CHIPS)}")
