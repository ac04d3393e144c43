"""How examples become batches: the settings of the input pipeline, and of what encodes one example."""

import enum
from dataclasses import dataclass

import numpy as np

from swjax.streaming import DEFAULT_CHAT, DEFAULT_GEOMETRY, ChatRule, Geometry, StreamSpec
from swjax.streaming.dropping import drop_of, without_features
from swjax.streaming.dropping.view import FEATURES, needs_of


class Batching(enum.StrEnum):
    """How rows are filled."""

    PAD = "pad"
    """One example a row."""
    PACK = "pack"
    """As many examples as fit, none seeing another."""
    BUCKET = "bucket"
    """One example a row, in batches of like size and as many shapes as buckets."""


@dataclass(frozen=True, kw_only=True)
class PipelineConfig(StreamSpec):
    """How examples become batches: what is to be learned (`StreamSpec`), and how rows are filled.

    Attributes:
        batch_size: rows of a batch in this process (B).
        max_tokens: tokens of a row (L); a longer example is skipped.
        max_patches: patches of a row (P), a multiple of those of a token; a video of more is skipped.
        max_labels: labelled tokens of a row; an example with a longer answer is skipped. None: as many as tokens.
        batching: how training fills its rows; evaluation pads.
        max_videos: images and videos of a row (V); more than one by packing, or in a mixed chat.
        window: examples that packing and bucketing choose from at a time. More fill rows better, and take the memory
            of twice their patches, as the next are read meanwhile.
        buckets: (tokens, patches) of rows for bucketing, the smallest first; max_tokens and max_patches are the last.
        seed: of the order of the examples and of their questions.
        workers: processes that encode examples; 0 encodes in threads of this process.
        threads: threads that encode examples, in this process or in each worker; 0 encodes when a batch is asked for.
        prefetch: examples that are kept ready, in this process or in each worker; of a window at least all.
        cache_mb: megabytes of patches that this process, or each worker, keeps from epoch to epoch instead of decoding
            their videos again.
        geometry: the model's sizes of patches and tokens.
        chat: how the model's family chats.
    """

    batch_size: int
    max_tokens: int
    max_patches: int
    max_labels: int | None = None
    batching: Batching | str = Batching.PAD
    max_videos: int = 1
    window: int = 64
    buckets: tuple[tuple[int, int], ...] = ()
    seed: int = 0
    workers: int = 0
    threads: int = 2
    prefetch: int = 16
    cache_mb: int = 0
    geometry: Geometry = DEFAULT_GEOMETRY
    chat: ChatRule = DEFAULT_CHAT

    @property
    def ahead(self) -> int:
        """Examples that this process, or each worker, reads ahead.

        A window is asked for at once, and then none for many steps, in which the next one is read.
        """
        window = 0 if self.batching == Batching.PAD else self.window
        return max(self.prefetch, -(-window // max(1, self.workers)))

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        super().__post_init__()
        if self.batching not in tuple(Batching):
            raise ValueError(f"batching must be one of {', '.join(Batching)}, got {self.batching!r}")
        if self.batching == Batching.BUCKET and self.window % self.batch_size:
            raise ValueError(f"window must be a multiple of batch_size ({self.batch_size}), got {self.window}")
        bounds = np.array((*self.buckets, (self.max_tokens, self.max_patches)))
        if (np.diff(bounds, axis=0) < 0).any() or (bounds < 1).any():
            raise ValueError(f"buckets must grow up to (max_tokens, max_patches), got {bounds.tolist()}")
        unit = self.geometry.token_patches
        if odd := [int(patches) for patches in bounds[:, 1] if patches % unit]:
            raise ValueError(
                f"max_patches and the patches of buckets must be multiples of {unit}, which make a token, "
                f"got {odd[0]}; give {odd[0] // unit * unit or unit}"
            )
        at_least_one = ("batch_size", "max_tokens", "max_patches", "max_videos", "window")
        for name in (*at_least_one, "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "workers", "threads", "cache_mb"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if (drop := drop_of(self.drop)) is not None and FEATURES in needs_of(drop):
            raise ValueError(
                f"drop is {self.drop!r}, which looks at features, and data is read before a model is at hand; "
                f"use a rule that needs none: {', '.join(without_features())}"
            )
        token_pixels = self.geometry.token_size**2
        if self.max_pixels < token_pixels:
            raise ValueError(
                f"max_pixels must be at least the pixels of one token ({token_pixels}), got {self.max_pixels}"
            )
