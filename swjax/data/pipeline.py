"""The input pipeline: from the lines of a manifest to batches of fixed shape, in Grain.

Decoding, resizing, tokenising and laying out run in Grain's threads or worker processes. What fails there comes back
in the place of the example, is noted in the `RejectedLog` of this process and leaves the stream. Rows are put into
batches here, after the workers, so the batches are the same for any number of workers and threads.
"""

import enum
import functools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags
from jaxtyping import Int32

from swjax.data.batching import Batch, Row, bucket_rows, empty_row, make_row, pack_rows, pad_rows
from swjax.data.cache import PatchCache, Patches
from swjax.data.chat import EVALUATION_QUESTION, encode_chat, sentence_tokens, training_question
from swjax.data.example import ExampleError, Video, VideoExample
from swjax.data.patches import MERGE_SIZE, PATCH_SIZE, TEMPORAL_PATCH_SIZE, video_to_patches
from swjax.data.rejected import RejectedLog, check_rejected
from swjax.data.stream import CountedStream
from swjax.data.video import DEFAULT_FPS, decode_video
from swjax.streaming import SpecialTokens, Variant, aligned_schedule, build_layout


class Batching(enum.StrEnum):
    """How rows are filled."""

    PAD = "pad"
    """One example a row."""
    PACK = "pack"
    """As many examples as fit, none seeing another."""
    BUCKET = "bucket"
    """One example a row, in batches of like size and as many shapes as buckets."""


@dataclass(frozen=True)
class PipelineConfig:
    """How examples become batches.

    Attributes:
        batch_size: rows of a batch in this process (B).
        max_tokens: tokens of a row (L); a longer example is set aside.
        max_patches: patches of a row (P); a video of more is set aside.
        max_labels: labelled tokens of a row; an example with a longer answer is set aside. None: as many as tokens.
        batching: how training fills its rows; evaluation pads.
        max_videos: videos of a row (V); more than one only by packing.
        window: examples that packing and bucketing choose from at a time. More fill rows better, and take their
            patches' memory.
        buckets: (tokens, patches) of rows for bucketing, the smallest first; max_tokens and max_patches are the last.
        variant: the position design.
        wait_k: answer tokens spoken after each frame; a caption of fewer tokens a frame is set aside.
        gap: first id of the answer in GIPE.
        fps: frames a second that are taken from the video; two of them are one frame of the model.
        min_pixels: smallest area of a resized frame.
        max_pixels: largest area of a resized frame.
        seed: of the order of the examples and of their questions.
        workers: processes that encode examples; 0 encodes in threads of this process.
        threads: threads that encode examples, in this process or in each worker; 0 encodes when a batch is asked for.
        prefetch: examples that are kept ready, in this process or in each worker.
        cache_mb: megabytes of patches that this process, or each worker, keeps from epoch to epoch instead of decoding
            their videos again.
    """

    batch_size: int
    max_tokens: int
    max_patches: int
    max_labels: int | None = None
    batching: Batching | str = Batching.PAD
    max_videos: int = 1
    window: int = 64
    buckets: tuple[tuple[int, int], ...] = ()
    variant: Variant | str = Variant.GDPE
    wait_k: int = 3
    gap: int = 10_000
    fps: float = DEFAULT_FPS
    min_pixels: int = 56 * 56
    max_pixels: int = 448 * 448
    seed: int = 0
    workers: int = 0
    threads: int = 2
    prefetch: int = 16
    cache_mb: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        Variant(self.variant)
        if self.batching not in tuple(Batching):
            raise ValueError(f"batching must be one of {', '.join(Batching)}, got {self.batching!r}")
        if self.batching == Batching.BUCKET and self.window % self.batch_size:
            raise ValueError(f"window must be a multiple of batch_size ({self.batch_size}), got {self.window}")
        bounds = np.array((*self.buckets, (self.max_tokens, self.max_patches)))
        if (np.diff(bounds, axis=0) < 0).any() or (bounds < 1).any():
            raise ValueError(f"buckets must grow up to (max_tokens, max_patches), got {bounds.tolist()}")
        at_least_one = ("batch_size", "max_tokens", "max_patches", "max_videos", "window", "wait_k", "min_pixels")
        for name in (*at_least_one, "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("gap", "seed", "workers", "threads", "cache_mb"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps must be above 0, got {self.fps}")
        token_pixels = (PATCH_SIZE * MERGE_SIZE) ** 2
        if self.max_pixels < max(self.min_pixels, token_pixels):
            raise ValueError(
                f"max_pixels must be at least min_pixels ({self.min_pixels}) and the pixels of one token "
                f"({token_pixels}), got {self.max_pixels}"
            )


@dataclass(frozen=True)
class Mixture:
    """Several data sets and how often each is drawn from.

    Attributes:
        sets: the examples of each, with random access.
        weights: share of each in the training stream, relative to the sum.
    """

    sets: tuple[Sequence[VideoExample], ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.sets) != len(self.weights) or not self.sets:
            raise ValueError(f"each data set needs a weight, got {len(self.sets)} sets and weights {self.weights}")
        if not all(math.isfinite(weight) and weight > 0 for weight in self.weights):
            raise ValueError(f"weights of data sets must be above 0, got {self.weights}")
        for number, examples in enumerate(self.sets):
            if not len(examples):
                raise ValueError(f"there are no examples to make batches of in data set {number}")
            if isinstance(examples, tuple | list) and len({example.key for example in examples}) < len(examples):
                raise ValueError("two examples share a key; every key must be unique")


def build_pipeline(
    examples: Sequence[VideoExample] | Mixture,
    config: PipelineConfig,
    tokenizer: Any,
    *,
    train: bool,
    special_tokens: SpecialTokens | None = None,
    rejected: RejectedLog | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset[Batch]:
    """Build the stream of batches of one process.

    Training goes on for ever, in a new order each epoch, and skips what cannot be used. Evaluation is one pass in the
    order of the manifest; what cannot be used, and what the last batch lacks, are rows without labels, so every
    process has the same number of batches and no example is lost.

    The iterator of the result has Grain's `get_state` and `set_state`. A state fits a pipeline with the same
    examples, batch size, batching and seed, read by any number of workers and threads.

    Args:
        examples: those of the whole data set, or of several with weights, in every process.
        config: shapes, sampling, workers.
        tokenizer: a transformers tokenizer with Qwen2.5-VL's special tokens and chat template.
        train: training or evaluation.
        special_tokens: None reads them off the tokenizer.
        rejected: where bad examples are noted; None makes a log in memory.
        process_index: which of the processes of the run this is.
        process_count: how many processes share the examples.

    Raises:
        ValueError: if the process does not exist, or several processes are to choose buckets, which they cannot do
            alike.
        TooManyRejectedError: on iteration, once more examples fail than the log allows.
    """
    sets = examples if isinstance(examples, Mixture) else Mixture((examples,), (1.0,))
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index must be in 0..{process_count - 1}, got {process_index}")
    if train and config.batching == Batching.BUCKET and process_count > 1:
        raise ValueError(
            f"bucketing works in one process, and there are {process_count}: each would choose other shapes; use "
            "batching='pack'"
        )
    log = RejectedLog() if rejected is None else rejected
    encoder = _RowEncoder(
        sets.sets,
        config,
        tokenizer,
        special_tokens or SpecialTokens.from_tokenizer(tokenizer),
        train,
        PatchCache(config.cache_mb * 1_000_000),
    )
    numbers = (
        _training_order(sets, config.seed) if train else _evaluation_order(sets, config.batch_size * process_count)
    )
    encoded = numbers.map(encoder)[process_index::process_count]
    rows: grain.IterDataset = CountedStream(functools.partial(_read_ahead, encoded, config))
    rows = rows.map(functools.partial(_note, log=log, num_examples=sum(map(len, sets.sets))))
    stack = functools.partial(pad_rows, tokens=config.max_tokens, patches=config.max_patches, videos=config.max_videos)
    if not train:
        return rows.batch(config.batch_size, drop_remainder=False, batch_fn=stack)
    rows = rows.filter(_is_usable)
    if config.batching == Batching.BUCKET:
        make = functools.partial(
            bucket_rows,
            batch_size=config.batch_size,
            buckets=(*config.buckets, (config.max_tokens, config.max_patches)),
            videos=config.max_videos,
        )
        return _by_windows(rows, config.window, make)
    if config.batching == Batching.PACK:
        pack = functools.partial(
            pack_rows,
            tokens=config.max_tokens,
            patches=config.max_patches,
            videos=config.max_videos,
            labels=config.max_tokens if config.max_labels is None else config.max_labels,
        )
        rows = _by_windows(rows, config.window, pack)
    return rows.batch(config.batch_size, drop_remainder=True, batch_fn=stack)


def load_patches(video: Video, config: PipelineConfig) -> Patches:
    """Decode a video, or a clip of a record, and cut it up, as the config says.

    Raises:
        ExampleError: if the video cannot be used or has more patches than a row.
    """
    frames = decode_video(video, fps=config.fps, max_frames=config.max_patches // MERGE_SIZE**2 * TEMPORAL_PATCH_SIZE)
    patches, grid = video_to_patches(frames, min_pixels=config.min_pixels, max_pixels=config.max_pixels)
    if len(patches) > config.max_patches:
        raise ExampleError(
            f"{video} has {len(patches)} patches (grid {grid}), and a row has room for {config.max_patches}; raise "
            "max_patches, lower max_pixels or cut the video"
        )
    return patches, grid


def encode_example(
    example: VideoExample,
    config: PipelineConfig,
    tokenizer: Any,
    special_tokens: SpecialTokens,
    *,
    question: str,
    answer: str | None = None,
    cache: PatchCache | None = None,
) -> Row:
    """Encode one example as a row without padding.

    Args:
        example: what to encode.
        config: shapes and sampling.
        tokenizer: a transformers tokenizer with Qwen2.5-VL's special tokens and chat template.
        special_tokens: their ids.
        question: what the user asks.
        answer: what is to be answered; by default the example's caption.
        cache: patches loaded before.

    Returns:
        A row, as `swjax.data.batching` says, without padding.

    Raises:
        ExampleError: if the video cannot be used, the caption is too short for its frames, or the example is too
            large for a row.
    """
    answer = example.caption if answer is None else answer
    load = functools.partial(load_patches, config=config)
    patches, grid = load(example.video) if cache is None else cache.get(example.video, load)
    ids = encode_chat(tokenizer, question=question, answer=answer, later=example.later, video_grid_thw=grid)
    schedule = answer_schedule(example, ids, grid, config, tokenizer, special_tokens)
    if len(ids) > config.max_tokens:
        raise ExampleError(
            f"the example has {len(ids)} tokens, and a row has room for {config.max_tokens}; raise max_tokens, lower "
            "max_pixels, or cut the video or its caption"
        )
    layout = build_layout(
        ids,
        np.array([grid]),
        variant=config.variant,
        schedule=schedule,
        gap=config.gap,
        second_per_grid_t=TEMPORAL_PATCH_SIZE / config.fps,
        special_tokens=special_tokens,
    )
    num_labels = int(np.count_nonzero(layout.labels >= 0))
    if config.max_labels is not None and num_labels > config.max_labels:
        raise ExampleError(
            f"the example has {num_labels} labelled tokens, and a row has room for {config.max_labels}; raise "
            "max_labels or cut the caption"
        )
    return make_row(layout, patches, np.array([grid]))


class _Numbered(NamedTuple):
    """Which example comes, and in which epoch of its data set; `example` is -1 for a row that only fills a batch."""

    data_set: int
    example: int
    epoch: int


def _training_order(mixture: Mixture, seed: int) -> grain.MapDataset[_Numbered]:
    """Numbers of examples without end, in a new order each epoch."""

    def numbered(position: int, example: int, *, data_set: int, size: int) -> _Numbered:
        return _Numbered(data_set, int(example), position // size)

    streams = [
        grain.MapDataset.range(len(examples))
        .shuffle(seed=seed + number)
        .repeat()
        .map_with_index(functools.partial(numbered, data_set=number, size=len(examples)))
        for number, examples in enumerate(mixture.sets)
    ]
    return streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, mixture.weights)


def _evaluation_order(mixture: Mixture, multiple: int) -> grain.MapDataset[_Numbered]:
    """Numbers of all examples once, in order, filled up to a multiple."""
    bounds = np.cumsum([len(examples) for examples in mixture.sets])

    def numbered(position: int) -> _Numbered:
        if position >= bounds[-1]:
            return _Numbered(0, -1, 0)
        data_set = int(np.searchsorted(bounds, position, side="right"))
        return _Numbered(data_set, int(position - bounds[data_set] + len(mixture.sets[data_set])), 0)

    return grain.MapDataset.range(math.ceil(bounds[-1] / multiple) * multiple).map(numbered)


def _read_ahead(encoded: grain.MapDataset[Row], config: PipelineConfig, first: int) -> grain.IterDataset[Row]:
    """The rows from number `first` on, encoded ahead of time by threads or worker processes."""
    rows = encoded[first:].to_iter_dataset(
        grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=config.prefetch if config.threads else 0)
    )
    rows = grain.experimental.WithOptionsIterDataset(
        rows,
        # Every array goes through shared memory: pickled ones fill the pipe from a worker, which then cannot end
        # before somebody reads them, and closing the stream would wait for half a minute.
        grain.experimental.DatasetOptions(min_shm_size=0, filter_warn_threshold_ratio=None),
    )
    if config.workers and not flags.FLAGS.is_parsed():
        # Grain reads a flag when it starts workers, and absl refuses unless a program has parsed its command line.
        flags.FLAGS.mark_as_parsed()
    return rows.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=config.workers, per_worker_buffer_size=config.prefetch)
    )


@dataclass(frozen=True)
class _RowEncoder:
    """Number in the stream -> row; the part that runs in threads and workers."""

    sets: tuple[Sequence[VideoExample], ...]
    config: PipelineConfig
    tokenizer: Any
    special_tokens: SpecialTokens
    train: bool
    cache: PatchCache

    def __call__(self, numbered: _Numbered) -> Row:
        if numbered.example < 0:
            return {"key": "", "reason": "", **empty_row()}
        key = f"data set {numbered.data_set}, example {numbered.example}"
        try:
            example = self.sets[numbered.data_set][numbered.example]
            key = example.key
            row = encode_example(
                example,
                self.config,
                self.tokenizer,
                self.special_tokens,
                **self._asked(example, numbered.epoch),
                cache=self.cache,
            )
        except ExampleError as error:
            return {"key": key, "reason": str(error), **empty_row()}
        return {"key": key, "reason": "", **row}

    def _asked(self, example: VideoExample, epoch: int) -> dict[str, str]:
        """What is asked in an epoch, and what the answer is."""
        chosen = random.Random(f"{self.config.seed}/{epoch}/{example.key}/other") if self.train else None
        question, answer = example.question, example.caption
        if chosen is not None and example.others:
            question, answer = chosen.choice([(question, answer), *example.others])
        if question is None and self.train:
            question = training_question(example.key, seed=self.config.seed, epoch=epoch)
        return {"question": EVALUATION_QUESTION if question is None else question, "answer": answer}


def answer_schedule(
    example: VideoExample,
    ids: Int32[np.ndarray, "L"],
    grid: tuple[int, int, int],
    config: PipelineConfig,
    tokenizer: Any,
    special_tokens: SpecialTokens,
) -> int | list[int]:
    """Answer tokens a frame: wait-k, or as the times of the sentences allow.

    Args:
        example: its sentences matter.
        ids: its chat.
        grid: its video in patches.
        config: wait-k and frame rate.
        tokenizer: what the chat was encoded with.
        special_tokens: their ids.

    Raises:
        ExampleError: if the answer is too short for its frames, or a sentence begins after the video.
    """
    spoken, needed = len(first_answer(ids, special_tokens)), config.wait_k * grid[0]
    if not example.sentences:
        if spoken < needed:
            raise ExampleError(
                f"the caption has {spoken} tokens, too short for its {grid[0]} frames at {config.wait_k} tokens a "
                f"frame ({needed}); cut the video or lower wait_k"
            )
        return config.wait_k
    # A frame has arrived when the later of its pictures is on screen.
    arrival_s = (np.arange(1, grid[0] + 1) * TEMPORAL_PATCH_SIZE - 1) / config.fps
    starts = [sentence.time_s for sentence in example.sentences]
    end_s = grid[0] * TEMPORAL_PATCH_SIZE / config.fps
    if starts[-1] > end_s:
        raise ExampleError(f"a sentence starts at {starts[-1]:g} s, but the video ends at {end_s:g} s")
    lengths = sentence_tokens(tokenizer, [sentence.text for sentence in example.sentences])
    starts = np.minimum(starts, arrival_s[-1]).tolist()
    return aligned_schedule(lengths.tolist(), starts, arrival_s, wait_k=config.wait_k).tolist()


def first_answer(ids: Int32[np.ndarray, "L"], special: SpecialTokens) -> Int32[np.ndarray, "N"]:
    """Tokens of the answer about the video: between the assistant's prefix and its `<|im_end|>`."""
    after_video = np.flatnonzero(ids == special.video_pad)[-1]
    starts = np.flatnonzero(ids == special.im_start)
    answer = ids[starts[starts > after_video][0] + len(special.prefix) :]
    return answer[: np.flatnonzero(answer == special.im_end)[0]]


def _note(row: dict[str, Any], *, log: RejectedLog, num_examples: int) -> dict[str, Any]:
    """Tell the log what came of an example; raises when too many are bad, or a run on bad data would never end."""
    if row["key"]:
        log.note(row["key"], row["reason"] or None)
        if row["reason"]:
            check_rejected(log, num_examples=num_examples)
    return row


def _is_usable(row: dict[str, Any]) -> bool:
    return not row["reason"]


def _by_windows(
    rows: grain.IterDataset[Row], window: int, make: Callable[[Sequence[Row]], list[Any]]
) -> grain.IterDataset[Any]:
    """What `make` makes of every `window` rows, one by one."""

    class Flatten(grain.experimental.FlatMapTransform):
        """Grain wants a class."""

        max_fan_out = window

        def flat_map(self, element: Sequence[Row]) -> list[Any]:
            return make(element)

    windows = rows.batch(window, drop_remainder=True, batch_fn=list)
    return grain.experimental.FlatMapIterDataset(windows, Flatten())
