"""What the compilers of platforms want beside a program."""

from collections.abc import Mapping
from types import MappingProxyType

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

_TRAINING: dict[str, bool | int] = {
    # It writes a product or a kernel's result straight into the stack of what a loop keeps, and computes it again for
    # whoever else needs it: of a training step, attention and two of the MLP's three products, forward.
    "xla_gpu_enable_dynamic_slice_fusion": False,
    # Without it products go to cuBLAS, aligned: of 3,420 columns (the vision tower) at more than twice the speed.
    "xla_gpu_enable_triton_gemm": False,
}
_STREAMING: dict[str, bool | int] = {
    **_TRAINING,
    # It makes one product of two small ones with the same input, whose weights are then copied together in each pass:
    # of 3B, a quarter of the time that a GPU is busy while it streams.
    "xla_gpu_dot_merger_threshold_mb": 0,
}

_ON_TPU: dict[str, bool | int] = {
    # Without these, weights that are divided over a whole slice are gathered as sums of arrays filled with zeros: twice
    # as much is sent, nothing hides it, and the zeros have to be written.
    "xla_tpu_prefer_async_allgather_to_allreduce": True,
    "xla_enable_async_all_gather": True,
    # Scratch memory for one operation: with the default of 16 MiB products of a 7B's MLP reach 83 % of the peak rate by
    # the compiler's clock for v5p, with this 98 %.
    "xla_tpu_scoped_vmem_limit_kib": 65536,
    # It computes one product inside of the next, again for each part of that: on v6e two products of a 7B's MLP take
    # 1.6 times as long so, where the first is not kept for the backward pass.
    "xla_tpu_dot_dot_fusion": False,
    # Sums of gradients run on the sparse cores of v5p and v6e, beside products; v5e has none, and takes the option.
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": True,
    # The small ones, too, of norms and biases, for which the units would wait until those of weights are through.
    "xla_tpu_sparse_core_all_reduce_offload_min_size_in_bytes": 0,
    # Gathers run beside products.
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
}

TRAINING_OPTIONS = MappingProxyType({"gpu": _TRAINING, "tpu": _ON_TPU})
"""By platform of the devices, options for `jax.jit(compiler_options=...)` of training steps."""

STREAMING_OPTIONS = MappingProxyType({"gpu": _STREAMING})
"""The same for passes of a few tokens."""

WIDTH_TILES: Mapping[str, Mapping[str, int]] = MappingProxyType({"gpu": {"f": 64}, "tpu": {"h": 128}})
"""By platform, what axes inside of layers are filled up to a multiple of (`swjax.models.parameters.widened`)."""


HEADS_OUTERMOST = (0, 2, 1, 3)
"""Order in memory of an array [B, L, N, H] of which all slots of a head lie after each other."""


def in_order(x: Float[Array, "*axes"], order: tuple[int, ...]) -> Float[Array, "*axes"]:
    """The same array; on TPUs its axes lie in memory in an order, as whoever reads it fetches it.

    Left alone, the compiler of a training step lays out much of what a layer keeps for its backward pass, and the
    gradient of what attention returns, with slots in the lanes, and copies it where it is read. It does not divide what
    pins a layout, so on a mesh this is for the parts that devices hold.

    Args:
        x: any array.
        order: its axes, the one first along which neighbours lie farthest from each other.
    """

    def pinned(x: Array) -> Array:
        return with_layout_constraint(x, Layout(major_to_minor=order))

    return jax.lax.platform_dependent(x, tpu=pinned, default=lambda x: x)
