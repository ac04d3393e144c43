"""The input pipeline: from examples to batches of fixed shape, in Grain.

Decoding, resizing, tokenising and laying out run in Grain's threads or worker processes. What fails there comes back
in the place of the example, is noted in the `RejectedLog` of this process and leaves the stream. Rows are put into
batches here, after the workers, so the batches are the same for any number of workers and threads.
"""

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import grain
from absl import flags

from swjax.data.batching import Batch, Row, bucket_rows, empty_row, pack_rows, pad_rows
from swjax.data.cache import PatchCache
from swjax.data.chat import EVALUATION_QUESTION, training_question
from swjax.data.encoding import encode_example
from swjax.data.example import ExampleError, VideoExample
from swjax.data.order import Mixture, Numbered, evaluation_order, training_order
from swjax.data.pipeline_config import Batching, PipelineConfig
from swjax.data.rejected import RejectedLog, check_rejected
from swjax.data.stream import CountedStream
from swjax.plain import Json
from swjax.streaming import SpecialTokens
from swjax.streaming.dropping import drop_of
from swjax.streaming.tokens import Tokenizer

Made = TypeVar("Made")


def build_pipeline(
    examples: Sequence[VideoExample] | Mixture,
    config: PipelineConfig,
    tokenizer: Tokenizer,
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
        tokenizer: the model's.
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
        special_tokens or SpecialTokens.from_tokenizer(tokenizer, config.chat),
        train,
        PatchCache(config.cache_mb * 1_000_000),
    )
    numbers = training_order(sets, config.seed) if train else evaluation_order(sets, config.batch_size * process_count)
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


def _read_ahead(encoded: grain.MapDataset[Row], config: PipelineConfig, first: int) -> grain.IterDataset[Row]:
    """The rows from number `first` on, encoded ahead of time by threads or worker processes."""
    rows = encoded[first:].to_iter_dataset(
        grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=config.ahead if config.threads else 0)
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
        grain.MultiprocessingOptions(num_workers=config.workers, per_worker_buffer_size=config.ahead)
    )


@dataclass(frozen=True)
class _RowEncoder:
    """Number in the stream -> row; the part that runs in threads and workers."""

    sets: tuple[Sequence[VideoExample], ...]
    config: PipelineConfig
    tokenizer: Tokenizer
    special_tokens: SpecialTokens
    train: bool
    cache: PatchCache

    def __call__(self, numbered: Numbered) -> Row:
        if numbered.example < 0:
            return {"key": "", "reason": "", **self._nothing()}
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
            return {"key": key, "reason": str(error), **self._nothing()}
        return {"key": key, "reason": "", **row}

    def _nothing(self) -> Row:
        return empty_row(self.config.geometry.patch_dim, pruned=drop_of(self.config.drop) is not None)

    def _asked(self, example: VideoExample, epoch: int) -> dict[str, str]:
        """What is asked in an epoch, and what the answer is."""
        chosen = random.Random(f"{self.config.seed}/{epoch}/{example.key}/other") if self.train else None
        question, answer = example.question, example.caption
        if chosen is not None and example.others:
            question, answer = chosen.choice([(question, answer), *example.others])
        if question is None and self.train:
            question = training_question(example.key, seed=self.config.seed, epoch=epoch)
        return {"question": EVALUATION_QUESTION if question is None else question, "answer": answer}


def _note(row: Json, *, log: RejectedLog, num_examples: int) -> Json:
    """Tell the log what came of an example; raises when too many are bad, or a run on bad data would never end."""
    if row["key"]:
        log.note(row["key"], row["reason"] or None)
        if row["reason"]:
            check_rejected(log, num_examples=num_examples)
    return row


def _is_usable(row: Json) -> bool:
    return not row["reason"]


def _by_windows(
    rows: grain.IterDataset[Row], window: int, make: Callable[[Sequence[Row]], list[Made]]
) -> grain.IterDataset[Made]:
    """What `make` makes of every `window` rows, one by one."""

    class Flatten(grain.experimental.FlatMapTransform):
        """Grain wants a class."""

        max_fan_out = window

        def flat_map(self, element: Sequence[Row]) -> list[Made]:
            return make(element)

    windows = rows.batch(window, drop_remainder=True, batch_fn=list)
    return grain.experimental.FlatMapIterDataset(windows, Flatten())
