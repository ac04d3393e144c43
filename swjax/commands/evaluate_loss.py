"""Loss and perplexity of the captions of a split, read by the model as in training."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.progress import track

if TYPE_CHECKING:
    from swjax.data.batching import Batch, Row
    from swjax.data.example import Rejected, VideoExample
    from swjax.evaluation import Score
    from swjax.runs.streaming_model import StreamingModel
    from swjax.streaming import Geometry
    from swjax.streaming.tokens import Tokenizer

MAX_TOKENS = 2**17
"""Tokens of the longest example that is read: as many as a row of the engine may have when videos are watched."""
ROWS = 16
"""Rows of a batch, where they are short."""
PATCHES_OF_A_BATCH = 2**18


@dataclass(frozen=True)
class CaptionLosses:
    """How well the captions of a split were predicted.

    Attributes:
        scores: `loss`, the mean cross entropy of the captions' tokens in nats, and `perplexity`, its exponential;
            nothing where no caption could be read.
        videos: how many they are of.
        rejected: the others, and why.
    """

    scores: "Mapping[str, Score]"
    videos: int
    rejected: "tuple[Rejected, ...]"


def caption_losses(
    source: "StreamingModel", tokenizer: "Tokenizer", examples: "Sequence[VideoExample]"
) -> CaptionLosses:
    """Read the captions of examples, later turns included, in rows of the lengths that their videos turn out to have.

    Rows are padded to powers of two, so that few shapes are compiled.

    Args:
        source: the model, with the record of how it was trained to stream.
        tokenizer: the model's.
        examples: videos with captions, at least one. Those without a question of their own are asked evaluation's.
    """
    import jax
    import numpy as np

    from swjax.data.chat import EVALUATION_QUESTION
    from swjax.data.encoding import encode_example
    from swjax.data.example import ExampleError, Rejected
    from swjax.data.pipeline_config import PipelineConfig
    from swjax.evaluation.ahead import work_ahead
    from swjax.evaluation.bootstrap import ratio_score
    from swjax.evaluation.metrics import perplexity
    from swjax.models.parameters import merge_parameters, split_parameters
    from swjax.streaming import SpecialTokens
    from swjax.training.objectives.labels import IGNORED
    from swjax.training.objectives.next_token import losses_by_row

    geometry = source.model.config.geometry
    config = PipelineConfig(
        batch_size=1,
        max_tokens=MAX_TOKENS,
        max_patches=MAX_TOKENS * geometry.token_patches,
        geometry=geometry,
        chat=source.model.config.chat,
        **asdict(source.record),
    )
    special = SpecialTokens.from_tokenizer(tokenizer, config.chat)
    structure, parameters = split_parameters(source.model)
    rejected: list[Rejected] = []

    def encode(example: "VideoExample") -> "Row":
        return encode_example(example, config, tokenizer, special, question=example.question or EVALUATION_QUESTION)

    def usable_rows() -> "Iterator[Row]":
        for example, row in track(
            work_ahead(examples, encode), "reading captions", total=len(examples), transient=True
        ):
            if isinstance(row, ExampleError):
                rejected.append(Rejected(example.key, str(row)))
            else:
                yield row

    @jax.jit
    def sums(parameters: Any, batch: Any) -> Any:
        model = merge_parameters(structure, parameters)
        labels = (batch["labels"] != IGNORED).sum(-1)
        return losses_by_row(model, batch, max_labels=batch["labels"].shape[-1]), labels

    batches = _batches(usable_rows(), geometry, most=min(ROWS, len(examples)))
    found: dict[int, tuple[float, int]] = {}
    for numbers, batch in batches:
        by_row = zip(*jax.device_get(sums(parameters, batch)), strict=True)
        found.update(zip(numbers, by_row, strict=False))  # empty rows fill the batch
    if not found:
        return CaptionLosses({}, 0, tuple(rejected))
    losses, labels = (np.array(part) for part in zip(*(found[number] for number in sorted(found)), strict=True))
    scores = {"loss": ratio_score(losses, labels), "perplexity": perplexity(losses, labels)}
    return CaptionLosses(scores, len(found), tuple(rejected))


def _batches(rows: "Iterable[Row]", geometry: "Geometry", *, most: int) -> "Iterator[tuple[list[int], Batch]]":
    """Rows of like size in batches of as many as there is room for, each with the numbers of its rows."""
    from swjax.data.batching import empty_row, pad_rows, row_size

    unit = geometry.token_patches
    waiting: dict[tuple[int, int], list[tuple[int, Row]]] = {}

    def batch(size: tuple[int, int]) -> "tuple[list[int], Batch]":
        tokens, patches = size
        numbers, members = map(list, zip(*waiting.pop(size), strict=True))
        members += [empty_row(geometry.patch_dim)] * (_num_rows(patches, most) - len(members))
        return numbers, pad_rows(members, tokens=tokens, patches=patches, videos=1)

    for number, row in enumerate(rows):
        tokens, patches, _ = row_size(row)
        size = _power_of_two(tokens, 64), unit * _power_of_two(-(-patches // unit), 16)
        waiting.setdefault(size, []).append((number, row))
        if len(waiting[size]) == _num_rows(size[1], most):
            yield batch(size)
    for size in list(waiting):
        yield batch(size)


def _num_rows(patches: int, most: int) -> int:
    return max(1, min(most, PATCHES_OF_A_BATCH // patches))


def _power_of_two(count: int, least: int) -> int:
    """The least power of two that is no less, from `least` on."""
    return max(least, 1 << (count - 1).bit_length())
