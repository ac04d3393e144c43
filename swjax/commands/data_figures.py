"""Figures of a data set: histograms of its sizes, and contact sheets of examples."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from swjax.commands.say import UsageError
from swjax.data.encoding import load_patches
from swjax.data.example import VideoExample
from swjax.data.pipeline_config import PipelineConfig
from swjax.data.statistics import Statistics, words_by_frame
from swjax.data.video import decode_video
from swjax.streaming.tokens import Tokenizer


def draw_histograms(found: Statistics, columns: Mapping[str, str], file: Path) -> None:
    """One histogram a column.

    Args:
        found: the sizes.
        columns: field of `ExampleSizes` -> what to call it.
        file: PNG file to write.

    Raises:
        UsageError: if matplotlib is not installed.
    """
    figure = _figure()
    across = 3
    down = -(-len(columns) // across)
    figure.set_size_inches(4 * across, 2.6 * down)
    for place, (name, meaning) in enumerate(columns.items()):
        axes = figure.add_subplot(down, across, place + 1)
        values = found.column(name)
        axes.hist(values, bins=min(40, max(5, len(np.unique(values)))), color="#0072b2")
        axes.axvline(float(np.median(values)), color="#d55e00", linewidth=1)
        axes.set_title(meaning, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{len(found.sizes)} examples; the line is the median", fontsize=10)
    figure.savefig(file, dpi=120)


def draw_sheet(example: VideoExample, config: PipelineConfig, tokenizer: Tokenizer, file: Path) -> None:
    """The frames of an example, and below each what may be said after it and no earlier.

    Args:
        example: one about a video that can be used.
        config: sampling and wait-k.
        tokenizer: the model's.
        file: PNG file to write.

    Raises:
        UsageError: if matplotlib is not installed.
    """
    figure = _figure()
    assert example.video is not None, "it is about one video"
    _, grid = load_patches(example.video, config)
    depth = config.geometry.temporal_patch_size
    frames = decode_video(
        example.video, fps=config.fps, temporal_patch_size=depth, max_frames=(grid[0] + 1) * depth - 1
    )
    words = words_by_frame(example, grid, config, tokenizer)
    across = min(8, grid[0])
    down = -(-grid[0] // across)
    figure.set_size_inches(1.9 * across, 0.7 + down * (0.9 + 1.7 * frames.shape[1] / frames.shape[2]))
    for number in range(grid[0]):
        axes = figure.add_subplot(down, across, number + 1)
        axes.imshow(frames[(number + 1) * depth - 1])
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"{number * depth / config.fps:g} s", fontsize=8, loc="left")
        axes.set_xlabel(textwrap.fill(words[number].strip().replace("$", r"\$"), 24), fontsize=8)
    asked = example.question or "(a generic question)"
    figure.suptitle(f"{example.key}: {asked}".replace("$", r"\$"), fontsize=9)
    figure.savefig(file, dpi=120)


def _figure() -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("figures need the extra `plots`: pip install 'swjax[plots]'") from error
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    return figure
