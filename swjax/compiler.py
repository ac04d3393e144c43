"""What the compiler is told beside a program."""

from collections.abc import Mapping
from types import MappingProxyType

_GPU_OPTIONS = {
    # It writes a product or a kernel's result straight into the stack of what a loop keeps, and computes it again for
    # whoever else needs it: of a training step, attention and two of the MLP's three products, forward.
    "xla_gpu_enable_dynamic_slice_fusion": False,
    # Without it products go to cuBLAS, aligned: of 3,420 columns (the vision tower) at several times the speed.
    "xla_gpu_enable_triton_gemm": False,
}

COMPILER_OPTIONS: Mapping[str, dict[str, bool]] = MappingProxyType({"gpu": _GPU_OPTIONS})
"""By platform of the devices, options for `jax.jit(compiler_options=...)` of all large programs."""
