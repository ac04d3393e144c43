"""What a run reads: the manifests of its configuration as streams of batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import grain
import jax
from rich.console import Console

from swjax.data.order import Mixture
from swjax.data.pipeline import build_pipeline
from swjax.data.pipeline_config import PipelineConfig
from swjax.data.rejected import RejectedLog, check_rejected
from swjax.data.sources import Source, open_sources
from swjax.models.config import ModelConfig
from swjax.storage import AnyPath
from swjax.streaming.tokens import Tokenizer
from swjax.training.config import ConfigError
from swjax.training.sections import Config, DataConfig

REJECTED = "rejected"


@dataclass(frozen=True)
class Inputs:
    """The examples of a run.

    Attributes:
        part: which part of every batch's rows this process reads, and of how many.
        batches: training batches without end; its place can be saved and restored.
        validation: one pass over the validation examples each time that it is iterated; None without any.
        rejected: examples that could not be used, by split.
    """

    part: tuple[int, int]
    batches: grain.DatasetIterator
    validation: grain.IterDataset | None
    rejected: Mapping[str, RejectedLog]


def open_training_data(data: DataConfig) -> tuple[Source, ...]:
    """The data sets that a run trains on.

    Raises:
        ManifestError, RecordsError: one of them cannot be used.
    """
    return open_sources(data.train, root=data.root or None, format=data.format)


def open_inputs(
    run_dir: AnyPath,
    data: DataConfig,
    pipeline_config: PipelineConfig,
    tokenizer: Tokenizer,
    part: tuple[int, int],
    sources: Sequence[Source],
    *,
    accumulation: int,
) -> Inputs:
    """Opens the batches of a run, for this process's part of the rows on a mesh.

    Args:
        run_dir: the run's folder.
        data: what is read.
        pipeline_config: how training examples become batches, from `read_pipeline_config`.
        tokenizer: the model's.
        part: which part of every batch's rows this process reads, and of how many.
        sources: from `open_training_data`.
        accumulation: batches that make one step; validation runs through one at a time.

    Raises:
        ConfigError: the weights of the data are not ones that can be drawn by.
        ManifestError, RecordsError, TooManyRejectedError: the data cannot be used.
    """
    folder = run_dir / REJECTED
    # Every process lists what it was given itself.
    suffix = f"-{jax.process_index()}" if jax.process_count() > 1 else ""
    try:
        logs = {
            split: RejectedLog(folder / f"{split}{suffix}.jsonl", max_share=data.max_rejected)
            for split in ("train", "validation")
        }
    except ValueError as error:
        raise ConfigError(f"{error}; delete that file, or choose another config.run_dir") from error
    weights = data.weights or (1.0,) * len(sources)
    batches = iter(_stream(pipeline_config, sources, weights, tokenizer, logs["train"], part=part, train=True))
    validation = None
    if data.validation:
        held_out = open_sources(data.validation, root=data.root or None, format=data.format)
        alike = (1.0,) * len(held_out)
        once = replace(pipeline_config, batch_size=pipeline_config.batch_size // accumulation)
        validation = _stream(once, held_out, alike, tokenizer, logs["validation"], part=part, train=False)
    return Inputs(part, batches, validation, MappingProxyType(logs))


def report_rejected(inputs: Inputs, console: Console) -> None:
    """Prints how many examples could not be used, the first of them and why, and where all are listed."""
    for split, log in inputs.rejected.items():
        if not log.rejected:
            continue
        console.print(f"{len(log.rejected)} {split} examples could not be used; {log.path} lists them:", markup=False)
        for example in log.rejected[:5]:
            console.print(f"  {example.where}: {example.reason}", markup=False)
        if len(log.rejected) > 5:
            console.print("  ...")


def read_pipeline_config(config: Config, model_config: ModelConfig, *, rows: int) -> PipelineConfig:
    """How the examples of a run become batches.

    Args:
        config: the run's.
        model_config: the model's sizes.
        rows: of a batch in this process.

    Raises:
        ConfigError: a value is not one that the pipeline takes.
    """
    try:
        return PipelineConfig(
            batch_size=rows,
            max_tokens=config.data.max_tokens,
            max_patches=config.data.max_patches,
            max_labels=config.data.max_labels,
            batching=config.data.batching,
            max_videos=config.data.max_videos,
            window=config.data.window,
            buckets=config.data.buckets,
            variant=config.variant,
            wait_k=config.wait_k,
            speaking=config.speaking,
            gap=config.gap,
            fps=config.data.fps,
            min_pixels=config.data.min_pixels,
            max_pixels=config.data.max_pixels,
            drop=config.data.drop,
            seed=config.seed,
            workers=config.data.workers,
            cache_mb=config.data.cache_mb,
            geometry=model_config.geometry,
            chat=model_config.chat,
        )
    except ValueError as error:
        raise ConfigError(f"config.data: {error}") from error


def _stream(
    config: PipelineConfig,
    sources: Sequence[Source],
    weights: tuple[float, ...],
    tokenizer: Tokenizer,
    log: RejectedLog,
    *,
    part: tuple[int, int],
    train: bool,
) -> grain.IterDataset:
    lines = [line for source in sources for line in source.rejected]
    for line in lines:
        log.note(line.where, line.reason)
    check_rejected(log, num_examples=sum(len(source.examples) for source in sources) + len(lines))
    try:
        mixture = Mixture(tuple(source.examples for source in sources), weights)
    except ValueError as error:
        raise ConfigError(f"config.data: {error}") from error
    return build_pipeline(
        mixture,
        config,
        tokenizer,
        train=train,
        rejected=log,
        process_index=part[0],
        process_count=part[1],
    )
