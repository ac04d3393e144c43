"""Keys of a configuration that fit a data set: sizes of rows, and how to fill them."""

import math
from collections.abc import Iterator

import numpy as np

from swjax.data.pipeline_config import PipelineConfig
from swjax.data.statistics import Statistics

_TOKENS, _LABELS = 64, 16

WORTH_FILLING = 0.3
"""Share of padding in rows of one example from which on packing or buckets are proposed."""


def fitting_keys(found: Statistics, config: PipelineConfig) -> list[str]:
    """Overrides of a configuration, without `--`, whose rows are no longer than the examples that were looked at need.

    Args:
        found: sizes of the examples.
        config: what they were measured by.
    """
    tokens, patches = _rounded(found.column("tokens").max(), _TOKENS), _patches(found.column("patches").max(), config)
    sampling = (("fps", config.fps), ("min_pixels", config.min_pixels), ("max_pixels", config.max_pixels))
    return [
        *(
            f"config.data.{name}={value:g}" if name == "fps" else f"config.data.{name}={value}"
            for name, value in sampling
        ),
        *([] if config.drop == PipelineConfig.drop else [f"config.data.drop={config.drop}"]),
        f"config.data.max_tokens={tokens}",
        f"config.data.max_patches={patches}",
        f"config.data.max_labels={_rounded(found.column('labels').max(), _LABELS)}",
        *([f"config.data.max_videos={most:.0f}"] if (most := found.column("media").max()) > 1 else []),
    ]


def describe_filling(found: Statistics, config: PipelineConfig, *, examples: int) -> Iterator[str]:
    """Lines on how to fill rows that one example each leaves half empty; none where they are full enough.

    Args:
        found: sizes of the examples that were looked at.
        config: what they were measured by.
        examples: of the whole data set.
    """
    tokens, patches = found.column("tokens"), found.column("patches")
    longest = _rounded(tokens.max(), _TOKENS)
    if 1 - tokens.sum() / (longest * len(tokens)) < WORTH_FILLING:
        return
    if found.packed_share is not None:
        packed = tokens.sum() / (1 - found.packed_share) / config.max_tokens
        rows = math.ceil(packed / len(tokens) * examples)
        yield (
            f"--config.data.batching=pack --config.data.max_videos={config.max_videos}: some {rows} rows of "
            f"{config.max_tokens} tokens an epoch, so config.steps = epochs x {rows} / (batch_size x accumulation)"
        )
    sizes = []
    for share in (0.5, 0.9):
        size = _rounded(np.quantile(tokens, share), _TOKENS), _patches(np.quantile(patches, share), config)
        if size[0] < longest and size not in sizes:
            sizes.append(size)
    if sizes:
        yield f'--config.data.batching=bucket --config.data.buckets="{tuple(sizes)!r}": in one process'


def _rounded(value: float, unit: int) -> int:
    return math.ceil(value / unit) * unit


def _patches(value: float, config: PipelineConfig) -> int:
    return _rounded(value, 16 * config.geometry.token_patches)
