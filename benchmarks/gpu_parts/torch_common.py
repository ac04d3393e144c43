"""What the PyTorch parts of the GPU benchmark share: device, waiting, memory and masks of spans.

A mask is made from the spans that `common.streaming_row` gives, so that both sides measure the same pairs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask

from swjax.streaming import KeySpans

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
DENSE_FALLBACK = "dense: this device has no backward pass of FlexAttention"


def wait(_: Any = None) -> None:
    """Returns when the device has nothing left to do."""
    if ON_GPU:
        torch.cuda.synchronize()


def forget_peak() -> None:
    """Begins a new account of peak memory, with what is unused given back."""
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int | None:
    """Most bytes that tensors held at once since `forget_peak`, inputs included; None on a CPU."""
    return torch.cuda.max_memory_allocated() if ON_GPU else None


def on_device(numbers: Any) -> torch.Tensor:
    """A numpy array on the device."""
    return torch.as_tensor(numbers).to(DEVICE)


def sees(spans: KeySpans) -> Callable[..., torch.Tensor]:
    """A `mask_mod` of FlexAttention: true where the query's span has the key."""
    start, stop = on_device(spans.start), on_device(spans.stop)

    def mask_mod(batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        return (start[query] <= key) & (key < stop[query])

    return mask_mod


def dense_mask(spans: KeySpans) -> torch.Tensor:
    """bool[1, 1, L, L], true where the query (row) sees the key (column)."""
    keys = torch.arange(len(spans.start), device=DEVICE)
    start, stop = on_device(spans.start)[:, None], on_device(spans.stop)[:, None]
    return ((start <= keys) & (keys < stop))[None, None]


def block_mask(mask_mod: Callable[..., torch.Tensor], length: int) -> BlockMask:
    """The blocks that FlexAttention visits; compiled on a GPU, where the dense mask would not always fit."""
    return create_block_mask(mask_mod, None, None, length, length, device=DEVICE, _compile=ON_GPU)


def dense_of(blocks: BlockMask) -> torch.Tensor:
    """bool[1, 1, L, L], the mask that `blocks` was made from."""
    return create_mask(blocks.mask_mod, 1, 1, *blocks.seq_lengths, device=DEVICE)
