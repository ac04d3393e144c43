"""The configuration of a training run: every key, its default and its meaning.

A field is a key, a field of a section is one with a dot: `config.data.train`. `configs/*.py` change what their
experiment changes, and the command line the rest. Defaults are the paper's where it names a value.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from swjax.attention import IMPLEMENTATIONS
from swjax.models.remat import REMAT
from swjax.streaming import StreamSpec, Variant
from swjax.training.objectives import DEFAULT_OBJECTIVE, objective_names
from swjax.training.optimizer import OPTIMIZERS, SCHEDULES

DTYPES = ("float32", "bfloat16")

T = TypeVar("T")


def key(default: T, meaning: str, *, free: bool = False, grows: bool = False, later: bool = False) -> T:
    """A key of the configuration, as a field of a dataclass.

    Args:
        default: its value unless an experiment changes it.
        meaning: for `swjax train --help`.
        free: whether a run may be resumed with another value.
        grows: whether a run may be resumed with another value, which is the run's from then on.
        later: the key came after the first runs: one that was recorded without it had the default.
    """
    details = {"meaning": meaning, "free": free, "grows": grows, "later": later}
    return field(default_factory=lambda: default, metadata=details)


@dataclass(frozen=True)
class ModelChoice:
    """Which model: a size, and what is changed of it."""

    preset: str = key("", "size: tiny, 3b, 7b, 32b, 72b; '' takes the size of init_from")
    overrides: Mapping[str, object] = key(
        {}, "fields of the model's configuration to change, such as {'text': {'num_layers': 2}}"
    )


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how examples fill rows."""

    train: str = key(
        "",
        "training data: files or folders of docs/data.md, or records and their split (FOLDER:train); several by commas",
    )
    format: str = key(
        "auto", "format of data that is no records: auto, which looks, or a name of docs/data.md", later=True
    )
    weights: tuple[float, ...] = key((), "how often each of data.train is drawn from; () = alike")
    root: str = key("", "folder that the videos of manifests must lie in; '' = each manifest's own", free=True)
    validation: str = key("", "validation data, as data.train; '' for no validation", free=True)
    fps: float = key(StreamSpec.fps, "video frames taken a second; Qwen2.5-VL takes two of them as one frame")
    min_pixels: int = key(StreamSpec.min_pixels, "smallest area of a resized video frame, at most max_pixels")
    max_pixels: int = key(
        StreamSpec.max_pixels, "largest area of a resized video frame, one token (784 in Qwen2.5-VL) or more"
    )
    drop: str = key(
        StreamSpec.drop,
        "tokens of frames that are dropped, in training and in streams: none, or a rule such as dtd_pixels:tau=0.1",
        later=True,
    )
    max_tokens: int = key(8192, "tokens of a row; longer examples are skipped")
    max_patches: int = key(
        30 * 1024,
        "patches of a row, whole tokens (of 4 in Qwen2.5-VL, whose frames take area / 196); longer videos are skipped",
    )
    max_labels: int = key(256, "labelled tokens of a row; examples with longer answers are skipped")
    batching: str = key(
        "pad", "how rows are filled: pad (one example each), pack (all that fit) or bucket (by size; in one process)"
    )
    max_videos: int = key(1, "videos of a row; packing needs more than one")
    window: int = key(
        64, "examples that packing and bucketing choose from at a time; bucketing needs a multiple of a step's rows"
    )
    buckets: tuple[tuple[int, int], ...] = key(
        (), "(tokens, patches) of the buckets, growing up to max_tokens and max_patches; patches in whole tokens"
    )
    max_rejected: float = key(0.05, "share of unusable examples that stops the run", free=True)
    workers: int = key(0, "processes that decode videos; 0 decodes in threads", free=True)
    cache_mb: int = key(0, "megabytes of decoded videos that each process keeps from epoch to epoch", free=True)
    feature_cache_mb: int = key(
        0,
        "megabytes of a frozen vision tower's features that are kept from epoch to epoch; 0 encodes each time",
        later=True,
    )


@dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates."""

    name: str = key("adamw", f"rule of the updates: {', '.join(OPTIMIZERS)}", later=True)
    learning_rate: float = key(2e-5, "peak learning rate; unless it is given, 1e-4 where adapters train")
    schedule: str = key("cosine", f"learning rate after its warm-up: {', '.join(SCHEDULES)}", later=True)
    final_fraction: float = key(0.0, "learning rate at the last step, as a part of the peak", later=True)
    decay_fraction: float = key(0.1, "part of the steps in which the schedule wsd falls, the last", later=True)
    warmup_fraction: float = key(0.03, "part of the steps in which the learning rate rises, the first")
    weight_decay: float = key(0.0, "weight decay of matrices")
    clip_norm: float = key(1.0, "largest global norm of the gradient; 0 clips nothing")
    b1: float = key(0.9, "decay of the first moment")
    b2: float = key(0.999, "decay of the second moment (Lion: 0.99)")
    moments_dtype: str = key("float32", f"dtype that AdamW's moments are kept in, {' or '.join(DTYPES)}")
    no_decay: tuple[str, ...] = key((), "regular expressions; those that one matches do not decay, as norms and biases")
    groups: tuple[tuple[str, float], ...] = key(
        (), "(regular expression, factor of the learning rate), such as (('visual/merger', 0.5),)"
    )
    ema: float = key(0.0, "decay of a running mean of the parameters that evaluation and export use; 0 = none")


@dataclass(frozen=True)
class LoraConfig:
    """Adapters."""

    rank: int = key(0, "rank of adapters, which then train alone, whatever frozen says; 0 trains the weights")
    alpha: float = key(16.0, "what an adapter adds is scaled by alpha / rank")
    dropout: float = key(0.0, "share of the inputs of every adapter that training drops at random", later=True)
    rslora: bool = key(False, "scale by alpha / square root of the rank instead", later=True)
    dora: bool = key(False, "adapters change directions alone, and a length for each output trains (DoRA)", later=True)
    targets: tuple[str, ...] = key(
        ("decoder/layers/",),
        "regular expressions, or names such as q_proj; weights of linear layers that one matches adapt",
    )
    additional: tuple[str, ...] = key(
        (), "regular expressions; parameters that train beside the adapters, such as visual/merger", later=True
    )
    base_dtype: str = key(
        "", "int8 holds adapted weights in 8 bits with a scale for each output; '' in dtype", later=True
    )
    init_from: str = key("", "adapter in PEFT's form to start from, of this rank and alpha", later=True)


@dataclass(frozen=True)
class ProfileConfig:
    """A trace for the profiler."""

    steps: str = key("", "first and last step of a trace for the profiler, such as 10:13; '' for none", free=True)


@dataclass(frozen=True)
class WandbConfig:
    """A report to Weights & Biases."""

    project: str = key("", "project of Weights & Biases to report to; '' for none", free=True)
    entity: str = key("", "user or team of that project; '' for your own", free=True)
    name: str = key("", "name of the run there; '' for that of its folder", free=True)
    tags: tuple[str, ...] = key((), "tags of the run there", free=True)


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis."""

    data: int = key(-1, "devices along the data axis, which repeats parameters; -1 = those left", free=True)
    fsdp: int = key(1, "devices along the fsdp axis, which shards parameters; -1 = those left", free=True)
    context: int = key(1, "devices along the context axis, which cuts rows; -1 = those left", free=True)
    tensor: int = key(1, "devices along the tensor axis, which cuts heads and features; -1 = those left", free=True)
    slices: int = key(-1, "TPU slices, which the data axis runs over; -1 = as many as the devices are of", free=True)


@dataclass(frozen=True)
class Config:
    """All of a run's configuration."""

    run_dir: str = key(
        "runs/default", "folder that the run is written to, and resumed from if it was stopped", free=True
    )
    seed: int = key(0, "seed of the parameters, of the order of the examples and of their questions")
    variant: str = key(StreamSpec.variant, f"position design: {', '.join(Variant)}")
    wait_k: int = key(StreamSpec.wait_k, "answer tokens spoken after each frame")
    speaking: str = key(
        StreamSpec.speaking,
        "when to speak: wait_k, or decide: after each frame a token of silence, or the sentences that are due by then",
        later=True,
    )
    gap: int = key(StreamSpec.gap, "first position id of the answer (gipe)")
    memory: str = key(
        StreamSpec.memory,
        "what streams of the model keep unless told otherwise, such as window:sources=4096; training keeps all",
        free=True,
        later=True,
    )
    init_from: str = key(
        "", "what to start from: a Hugging Face folder or Hub id, or a run's folder; '' is from scratch"
    )
    init_checkpoint: str = key(
        "latest",
        "of a run to start from: latest, best (the lowest validation loss) or the step of a checkpoint",
        later=True,
    )
    model: ModelChoice = field(default_factory=ModelChoice)
    tokenizer: str = key("", "tokenizer folder; '' takes init_from's, or that of Moving Shapes from scratch")
    objective: str = key(DEFAULT_OBJECTIVE, f"what is made small: {', '.join(objective_names())}", later=True)
    frozen: tuple[str, ...] = key(
        ("visual/(?!merger)",), "regular expressions; parameters whose path one matches do not train"
    )
    dtype: str = key("bfloat16", f"dtype of the computations, {' or '.join(DTYPES)}; what trains is kept in float32")
    attention: str = key("auto", f"implementation of attention: {', '.join(IMPLEMENTATIONS)}", free=True)
    remat: str = key(
        "full", f"what a layer's backward pass computes again to save memory: {', '.join(REMAT)}", free=True
    )
    data: DataConfig = field(default_factory=DataConfig)
    steps: int = key(
        313, "optimizer steps of the whole run, where epochs is 0; a run may be resumed with more", grows=True
    )
    epochs: float = key(
        0.0, "passes over the training data, which set the steps; 0 = as steps says", grows=True, later=True
    )
    batch_size: int = key(4, "rows that run through the model at once, over all devices; 0 = one for each device")
    accumulation: int = key(16, "batches whose gradients make one step: batch_size x accumulation rows")
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    frozen_layers: tuple[int, ...] = key((), "numbers of the decoder's layers, from 0, that do not train", later=True)
    checkpoint_every: int = key(50, "steps between checkpoints; the last step always has one", free=True)
    keep: int = key(2, "checkpoints kept, the latest", free=True)
    keep_best: int = key(0, "checkpoints kept beside them, those of the lowest validation loss", free=True)
    max_bad_steps: int = key(10, "steps that may be skipped as NaN or infinite; one more stops the run", free=True)
    watchdog_minutes: float = key(
        30.0,
        "minutes without the end of a step after which the stacks of all threads are written to the log; 0 = never",
        free=True,
        later=True,
    )
    eval_every: int = key(50, "steps between validations; the last step always has one", free=True)
    compilation_cache: str = key("", "folder that keeps compiled programs for the next start; '' for none", free=True)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    log_every: int = key(10, "steps between lines of the log, where there is no terminal for a bar", free=True)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
