"""What a data set is like: lengths, sizes and rates of its examples, and how full rows of it are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from swjax.data.batching import Row, pack_rows
from swjax.data.chat import EVALUATION_QUESTION
from swjax.data.encoding import encode_example, encode_text, first_answer
from swjax.data.example import ExampleError, Picture, Rejected, VideoExample
from swjax.data.pipeline_config import PipelineConfig
from swjax.streaming import SpecialTokens, last_visible_frame, tokens_per_frame_schedule
from swjax.streaming.tokens import Tokenizer


@dataclass(frozen=True)
class ExampleSizes:
    """Sizes of one example as the model sees it.

    Attributes:
        seconds: length of the video that is used.
        media: images and videos.
        frames: temporal steps of the vision tower, of videos.
        tokens: of the whole row; visual_tokens of them stand for frames, labels are learned.
        patches: of all frames.
        dropped: tokens of frames that a rule of dropping has taken away; they are among none of the others.
    """

    key: str
    seconds: float
    media: int
    frames: int
    tokens: int
    visual_tokens: int
    labels: int
    patches: int
    dropped: int = 0

    @property
    def answer_rate(self) -> float:
        """Labelled tokens to a second of video; 0 where there is none."""
        return self.labels / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Statistics:
    """Sizes of the examples that can be used, and why the others cannot.

    Attributes:
        padded_share: share of the slots of rows of one example each that are padding.
        packed_share: the same of packed rows; None if packing was not asked for.
    """

    sizes: tuple[ExampleSizes, ...]
    rejected: tuple[Rejected, ...]
    padded_share: float
    packed_share: float | None

    def column(self, name: str) -> Float[np.ndarray, "examples"]:
        """One field of all examples."""
        return np.array([getattr(size, name) for size in self.sizes], np.float64)


def measure(examples: Iterable[VideoExample], config: PipelineConfig, tokenizer: Tokenizer) -> Statistics:
    """Encode examples as training does, and measure the rows.

    Args:
        examples: what to measure.
        config: sampling and shapes; with more than one video to a row, packing is measured as well.
        tokenizer: the model's.
    """
    special = SpecialTokens.from_tokenizer(tokenizer, config.chat)
    rows: list[Row] = []
    sizes, rejected = [], []
    for example in examples:
        try:
            row = encode_example(example, config, tokenizer, special, question=example.question or EVALUATION_QUESTION)
        except ExampleError as error:
            rejected.append(Rejected(example.key, str(error)))
            continue
        sizes.append(_sizes(example, row, config, special))
        rows.append({**row, "pixel_values": row["pixel_values"][:, :1]})  # their number counts, not what they show
    used = sum(size.tokens for size in sizes)
    return Statistics(
        tuple(sizes),
        tuple(rejected),
        padded_share=1 - used / max(1, len(rows) * config.max_tokens),
        packed_share=_packed_share(rows, used, config) if config.max_videos > 1 and rows else None,
    )


def _sizes(example: VideoExample, row: Row, config: PipelineConfig, special: SpecialTokens) -> ExampleSizes:
    is_video = [not isinstance(item, Picture) for item in (example.media if example.video is None else [example.video])]
    frames = int(row["video_grid_thw"][is_video, 0].sum())
    return ExampleSizes(
        key=example.key,
        seconds=frames * config.geometry.temporal_patch_size / config.fps,
        media=len(row["video_grid_thw"]),
        frames=frames,
        tokens=len(row["token_ids"]),
        visual_tokens=int(np.isin(row["token_ids"], [special.video_pad, special.image_pad]).sum()),
        labels=int(np.count_nonzero(row["labels"] >= 0)),
        patches=len(row["pixel_values"]),
        dropped=int(np.count_nonzero(~row["kept"])) // config.geometry.token_patches if "kept" in row else 0,
    )


def _packed_share(rows: Sequence[Row], used: int, config: PipelineConfig) -> float:
    labels = config.max_tokens if config.max_labels is None else config.max_labels
    packed = 0
    for first in range(0, len(rows), config.window):
        window = list(rows[first : first + config.window])
        packed += len(
            pack_rows(
                window,
                tokens=config.max_tokens,
                patches=config.max_patches,
                videos=config.max_videos,
                labels=labels,
            )
        )
    return 1 - used / (packed * config.max_tokens)


def words_by_frame(
    example: VideoExample, grid: tuple[int, int, int], config: PipelineConfig, tokenizer: Tokenizer
) -> list[str]:
    """The answer, cut up into what may be said after each frame and no earlier.

    Args:
        example: whose answer.
        grid: its video in patches (t, h, w).
        config: wait-k and frame rate.
        tokenizer: the model's.

    Raises:
        ExampleError: if the answer does not fit the video.
    """
    special = SpecialTokens.from_tokenizer(tokenizer, config.chat)
    question = example.question or EVALUATION_QUESTION
    ids, schedule = encode_text(
        example, config, tokenizer, special, question=question, answer=example.caption, grid=grid
    )
    answer = first_answer(ids, special)
    frame = last_visible_frame(tokens_per_frame_schedule(schedule, grid[0]), np.arange(len(answer)))
    return [tokenizer.decode(answer[frame == number]) for number in range(grid[0])]
