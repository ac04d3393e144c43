"""The engine of a server: sized for its limits, and warm before the first client comes."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from swjax.data.patches import resized_size
from swjax.inference import BatchEngine, Frame, Model, StreamSettings, Weights
from swjax.inference.batch_engine import CHUNK_SIZES
from swjax.inference.dropping import Drop
from swjax.inference.memory import KEEP_ALL, Memory
from swjax.inference.room import bounded_room
from swjax.inference.sizes import TILE
from swjax.serving.limits import Limits
from swjax.streaming import DEFAULT_GEOMETRY, Geometry, StreamSpec
from swjax.streaming.tokens import Tokenizer

QUESTION_SLOTS = 256
"""Slots for the prompt beside the video's; a longer question leaves fewer for the video."""

USUAL_SHAPES = ((1920, 1080), (1440, 1080), (1080, 1080))
"""Width and height of the pictures that are usual; those on their side have as many patches."""


@dataclass(frozen=True)
class EngineSize:
    """How large an engine is.

    Attributes:
        rows: streams at a time.
        frame_units: tokens of the largest frame.
        slots: of a row's cache.
        word_slots: how many of them are for words, in designs that store words and sources apart.
        frame_sizes: numbers of patches for which the vision tower is compiled; frames are padded to one of them.
    """

    rows: int
    frame_units: int
    slots: int
    word_slots: int
    frame_sizes: tuple[int, ...]

    @property
    def chunk_sizes(self) -> tuple[int, ...]:
        """Tokens of a pass beside the word: up to as many as a frame has, as each size is compiled."""
        largest = next((size for size in CHUNK_SIZES if size >= self.frame_units), CHUNK_SIZES[-1])
        return CHUNK_SIZES[: CHUNK_SIZES.index(largest) + 1]

    @classmethod
    def of(
        cls,
        record: StreamSpec,
        limits: Limits,
        *,
        rows: int,
        slots: int | None = None,
        pictures: Iterable[tuple[int, int]] = USUAL_SHAPES,
        geometry: Geometry = DEFAULT_GEOMETRY,
        memory: Memory = KEEP_ALL,
    ) -> "EngineSize":
        """The size that holds streams of the limits' length.

        Args:
            record: what the model was trained to do.
            limits: what the server takes.
            rows: streams at a time.
            slots: of a row's cache; None for as many as the longest video needs.
            pictures: width and height of the pictures that will come, whose frames are not padded. Others are padded
                to the next size: that of one of these, of the largest frame, or of a half or a quarter of it and so on.
            geometry: the model's sizes of patches and frames.
            memory: what streams keep; where it bounds that, rows are as long as they will ever need.

        Raises:
            ValueError: if a size makes no sense.
        """
        unit_pixels = geometry.token_size**2
        usual = {_units(record, geometry, *picture) for picture in pictures}
        units = max(record.max_pixels // unit_pixels, *usual)
        halves = {units}
        while min(halves) > 1 and min(halves) // 2 * unit_pixels >= record.min_pixels:
            halves.add(min(halves) // 2)
        frames = int(limits.max_video_s * record.fps / geometry.temporal_patch_size) + 1
        words = frames * record.wait_k + limits.max_tail + 16
        sources = QUESTION_SLOTS + frames * units
        longest = StreamSettings(max_tail=max(limits.max_tail, limits.max_wait_k), memory=memory)
        room = bounded_room(longest, units, CHUNK_SIZES[-1] + TILE, QUESTION_SLOTS)
        if room is not None:
            words, sources = room
            if slots is not None and slots < words + sources:
                raise ValueError(f"the memory needs {words + sources} slots a row, got {slots}; give more, or none")
        if slots is None:
            slots = words + sources
        if rows < 1 or slots < 2:
            raise ValueError(f"an engine needs at least 1 row and 2 slots, got {rows} and {slots}")
        sizes = tuple(geometry.token_patches * count for count in sorted(usual | halves))
        return cls(rows, units, slots, max(1, round(slots * words / (words + sources))), sizes)


def build_engine(
    model: Model | Weights, size: EngineSize, tokenizer: Tokenizer, memory: Memory = KEEP_ALL, drop: Drop | None = None
) -> BatchEngine:
    """Make a warm engine, whose rows do not grow: no stream waits while another's row is made larger.

    Args:
        model: the model, or its weights ready to stream.
        size: how large the engine is.
        tokenizer: the model's.
        memory: of the streams that will be opened; what it compiles is compiled now.
        drop: their rule of dropping tokens of frames, likewise; None for none.

    Raises:
        ValueError: if the tokenizer has no chat template for questions about videos.
    """
    engine = BatchEngine(
        model,
        rows=size.rows,
        frame_units=size.frame_units,
        slots=size.slots,
        word_slots=size.word_slots,
        max_slots=size.slots,
        chunk_sizes=size.chunk_sizes,
    )
    geometry = model.config.geometry
    grids = [(geometry.merge_size, patches // geometry.merge_size) for patches in size.frame_sizes]
    for grid in grids:
        engine.warm_up(grid, memory)  # from now on frames are padded to one of these sizes
    # One stream for nothing, so that no first client waits for what is left to be compiled.
    stream = engine.open(tokenizer, question="What happens?", settings=StreamSettings(max_tail=1, drop=drop))
    for grid in grids:
        engine.see(stream, Frame(np.zeros((grid[0] * grid[1], geometry.patch_dim), np.uint8), grid, 0.0, geometry))
    engine.finish(stream)
    while engine.has_work:
        engine.step()
    engine.close(stream)
    return engine


def _units(record: StreamSpec, geometry: Geometry, width: int, height: int) -> int:
    """Tokens of a frame of pictures of a size."""
    factor = geometry.token_size
    sides = resized_size(height, width, min_pixels=record.min_pixels, max_pixels=record.max_pixels, factor=factor)
    return sides[0] * sides[1] // factor**2
