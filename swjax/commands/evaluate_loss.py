"""Loss and perplexity of the captions of a split, read by the model as in training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.progress import track

if TYPE_CHECKING:
    from swjax.conversion.streaming_model import StreamingModel
    from swjax.data.example import VideoExample
    from swjax.evaluation import Score


def caption_losses(source: "StreamingModel", tokenizer: Any, examples: "Sequence[VideoExample]") -> "dict[str, Score]":
    """`loss`, the mean cross entropy of the captions' tokens in nats, and `perplexity`, its exponential."""
    import jax
    import numpy as np

    from swjax.conversion.parameters import merge_parameters, split_parameters
    from swjax.data.pipeline import build_pipeline
    from swjax.data.pipeline_config import PipelineConfig
    from swjax.data.rejected import RejectedLog
    from swjax.evaluation.bootstrap import ratio_score
    from swjax.evaluation.metrics import perplexity
    from swjax.training.loss import IGNORED, losses_by_row

    record = source.record
    max_tokens, max_patches = _row_lengths(source, tokenizer, examples)
    config = PipelineConfig(
        batch_size=min(16, len(examples)),
        max_tokens=max_tokens,
        max_patches=max_patches,
        variant=record.variant,
        wait_k=record.wait_k,
        gap=record.gap,
        fps=record.fps,
        min_pixels=record.min_pixels,
        max_pixels=record.max_pixels,
    )
    batches = build_pipeline(examples, config, tokenizer, train=False, rejected=RejectedLog(max_share=1.0))
    structure, parameters = split_parameters(source.model)

    @jax.jit
    def sums(parameters: Any, batch: Any) -> Any:
        model = merge_parameters(structure, parameters)
        labels = (batch["labels"] != IGNORED).sum(-1)
        return losses_by_row(model, batch, max_labels=config.max_tokens), labels

    steps = -(-len(examples) // config.batch_size)
    by_batch = [sums(parameters, batch) for batch in track(batches, "reading captions", total=steps, transient=True)]
    if not by_batch:
        return {}  # no video can be used, which is told when they are watched
    losses, labels = (np.concatenate(part) for part in zip(*jax.device_get(by_batch), strict=True))
    real = labels > 0
    return {
        "loss": ratio_score(losses[real], labels[real]),
        "perplexity": perplexity(losses[real], labels[real]),
    }


def _row_lengths(source: "StreamingModel", tokenizer: Any, examples: "Sequence[VideoExample]") -> tuple[int, int]:
    """Tokens and patches that hold the longest example, by the durations that the data set gives."""
    from swjax.data.chat import EVALUATION_QUESTION, encode_chat
    from swjax.data.patches import MERGE_SIZE, PATCH_SIZE, TEMPORAL_PATCH_SIZE

    record = source.record
    longest_s = max(example.duration_s for example in examples)
    frames = int(longest_s * record.fps / TEMPORAL_PATCH_SIZE) + 1
    patches = frames * (record.max_pixels // PATCH_SIZE**2)
    texts = {(example.question or EVALUATION_QUESTION, example.caption) for example in examples}
    text_tokens = max(
        len(encode_chat(tokenizer, question=question, answer=answer, video_grid_thw=(1, 2, 2)))
        for question, answer in texts
    )
    return text_tokens + patches // MERGE_SIZE**2, patches
