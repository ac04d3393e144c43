"""What a run reads: the manifests of its configuration as streams of batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import grain
import jax
from jax.sharding import Mesh
from rich.console import Console

from swjax.data.order import Mixture
from swjax.data.pipeline import build_pipeline
from swjax.data.pipeline_config import PipelineConfig
from swjax.data.rejected import RejectedLog, check_rejected
from swjax.data.sources import Source, open_sources
from swjax.mesh import row_share
from swjax.models.config import ModelConfig
from swjax.storage import as_path
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
    config: Config, model_config: ModelConfig, tokenizer: Tokenizer, mesh: Mesh, sources: Sequence[Source]
) -> Inputs:
    """Opens the batches of a run, for this process's part of the rows on a mesh.

    Args:
        config: the run's.
        model_config: the model's sizes.
        tokenizer: the model's.
        mesh: the devices.
        sources: from `open_training_data`.

    Raises:
        ConfigError: a value is not one that the pipeline takes.
        ManifestError, RecordsError, TooManyRejectedError: the data cannot be used.
    """
    folder = as_path(config.run_dir) / REJECTED
    # Every process lists what it was given itself.
    suffix = f"-{jax.process_index()}" if jax.process_count() > 1 else ""
    try:
        logs = {
            split: RejectedLog(folder / f"{split}{suffix}.jsonl", max_share=config.data.max_rejected)
            for split in ("train", "validation")
        }
    except ValueError as error:
        raise ConfigError(f"{error}; delete that file, or choose another config.run_dir") from error
    rows = config.batch_size * config.accumulation
    share = row_share(mesh)
    batches = iter(_stream(config, model_config, sources, tokenizer, logs["train"], rows=rows, share=share, train=True))
    validation = None
    if config.data.validation:
        validation = _stream(
            config,
            model_config,
            open_sources(config.data.validation, root=config.data.root or None, format=config.data.format),
            tokenizer,
            logs["validation"],
            rows=config.batch_size,
            share=share,
            train=False,
        )
    return Inputs(share, batches, validation, MappingProxyType(logs))


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
    config: Config,
    model_config: ModelConfig,
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    log: RejectedLog,
    *,
    rows: int,
    share: tuple[int, int],
    train: bool,
) -> grain.IterDataset:
    pipeline_config = read_pipeline_config(config, model_config, rows=rows // share[1])
    lines = [line for source in sources for line in source.rejected]
    for line in lines:
        log.note(line.where, line.reason)
    check_rejected(log, num_examples=sum(len(source.examples) for source in sources) + len(lines))
    weights = config.data.weights if train and config.data.weights else (1.0,) * len(sources)
    try:
        mixture = Mixture(tuple(source.examples for source in sources), weights)
    except ValueError as error:
        raise ConfigError(f"config.data: {error}") from error
    return build_pipeline(
        mixture,
        pipeline_config,
        tokenizer,
        train=train,
        rejected=log,
        process_index=share[0],
        process_count=share[1],
    )
