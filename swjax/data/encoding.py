"""From an example to the row of a batch: its video decoded and cut up, its chat tokenised, its tokens laid out."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from itertools import compress

import numpy as np
from jaxtyping import Bool, Float, Int32, Int64, UInt8

from swjax.data.batching import Row, make_row
from swjax.data.cache import PatchCache, Patches
from swjax.data.chat import encode_chat, sentence_tokens
from swjax.data.decisions import encode_decisions, encode_questions
from swjax.data.example import EncodedClip, ExampleError, Picture, Video, VideoExample
from swjax.data.mixed import encode_mixed_text
from swjax.data.patches import resize, size_for_model, video_to_patches
from swjax.data.pictures import read_picture
from swjax.data.pipeline_config import PipelineConfig
from swjax.data.pruned import kept_tokens
from swjax.data.video import iter_frames
from swjax.plain import Json
from swjax.streaming import (
    DESIGNS,
    ChatRule,
    SpecialTokens,
    StreamLayout,
    Variant,
    aligned_schedule,
    build_conversation,
    build_layout,
)
from swjax.streaming.dropping import drop_of
from swjax.streaming.pruning import prune_layout
from swjax.streaming.tokens import Tokenizer


def load_patches(video: Picture | Video, config: PipelineConfig) -> Patches:
    """Decode a video, a clip of a record or an image, and cut it up, as the config says.

    An image is one frame, of as many copies as a frame has pictures, as Qwen2-VL's processor makes it.

    Frames are resized as they come, and no more of them are decoded than a row has room for.

    Args:
        video: what to decode.
        config: frame rate, pixel limits and room of a row.

    Raises:
        ExampleError: if the video cannot be used or has more patches than a row.
    """
    budget = {"min_pixels": config.min_pixels, "max_pixels": config.max_pixels}
    geometry, depth = config.geometry, config.geometry.temporal_patch_size
    if isinstance(video, Picture):
        picture, shrunk_from = read_picture(video)
        pictures = np.stack([picture] * depth)
        return video_to_patches(pictures, original_size=shrunk_from, geometry=geometry, **budget)
    original_size = video.original_size if isinstance(video, EncodedClip) else None
    frames: list[np.ndarray] = []
    most = height = width = 0
    for _, frame in iter_frames(video, config.fps):
        if not frames:
            original_size = original_size or (frame.shape[0], frame.shape[1])
            height, width = size_for_model(frame.shape[:2], original_size, factor=geometry.token_size, **budget)
            most = config.max_patches // (height * width // geometry.patch_size**2) * depth
        if len(frames) == most + depth - 1:
            raise ExampleError(
                f"{video} has more than the {config.max_patches} patches that a row has room for: those of "
                f"{most // depth} frames ({most / config.fps:g} s) of {height // geometry.patch_size} x "
                f"{width // geometry.patch_size}; raise max_patches, lower max_pixels or cut the video"
            )
        frames.append(resize(frame[None], height, width)[0])
    usable = len(frames) - len(frames) % depth
    if not usable:
        raise ExampleError(
            f"{video} is too short: {len(frames)} frame(s) at {config.fps:g} fps, and one step of the model needs "
            f"{depth} ({geometry.frame_seconds(config.fps):g} s); leave the video out or sample faster"
        )
    return video_to_patches(np.stack(frames[:usable]), original_size=original_size, geometry=geometry, **budget)


def encode_example(
    example: VideoExample,
    config: PipelineConfig,
    tokenizer: Tokenizer,
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
        tokenizer: the model's.
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
    media = example.media if example.video is None else (example.video,)
    pieces, grid_thw = _load_media(media, config, cache)
    is_image = np.array([isinstance(item, Picture) for item in media], bool)
    if example.video is not None:
        grid = tuple(grid_thw[0].tolist())
        layout = _lay_out(example, config, tokenizer, special_tokens, question=question, answer=answer, grid=grid)
    else:
        ids = encode_mixed_text(
            example,
            config,
            tokenizer,
            special_tokens,
            question=question,
            answer=answer,
            grid_thw=grid_thw,
            is_image=is_image,
            chat=chat_of(example, config),
        )
        layout = build_layout(
            ids,
            grid_thw[~is_image],
            image_grid_thw=grid_thw[is_image],
            schedule=config.wait_k,
            **_placing(config, special_tokens),
        )
    kept = None
    if (drop := drop_of(config.drop)) is not None:
        keep_last = not DESIGNS[Variant(config.variant)].grouped
        tokens = [
            np.ones(len(patches) // config.geometry.token_patches, bool)
            if still
            else kept_tokens(drop, patches, grid.tolist(), config.geometry, keep_last=keep_last)
            for patches, grid, still in zip(pieces, grid_thw, is_image, strict=True)
        ]
        layout = _without_dropped(layout, _joined(compress(tokens, ~is_image)), special_tokens)
        kept = np.repeat(_joined(tokens), config.geometry.token_patches)
    if len(layout) > config.max_tokens:
        raise ExampleError(
            f"the example has {len(layout)} tokens, and a row has room for {config.max_tokens}; raise max_tokens, "
            "lower max_pixels, or cut the video or its caption"
        )
    num_labels = int(np.count_nonzero(layout.labels >= 0))
    if config.max_labels is not None and num_labels > config.max_labels:
        raise ExampleError(
            f"the example has {num_labels} labelled tokens, and a row has room for {config.max_labels}; raise "
            "max_labels or cut the caption"
        )
    no_patches = np.zeros((0, config.geometry.patch_dim), np.uint8)
    return make_row(layout, pieces[0] if len(pieces) == 1 else np.concatenate([no_patches, *pieces]), grid_thw, kept)


def _load_media(
    media: Sequence[Picture | Video], config: PipelineConfig, cache: PatchCache | None
) -> tuple[list[UInt8[np.ndarray, "_ D"]], Int64[np.ndarray, "V 3"]]:
    """Patches of each image and video, and their grids (t, h, w), if a row has room for all."""
    if len(media) > config.max_videos:
        raise ExampleError(
            f"the example has {len(media)} images and videos, and a row has room for {config.max_videos}; raise "
            "max_videos"
        )
    load = functools.partial(load_patches, config=config)
    loaded = [load(item) if cache is None else cache.get(item, load) for item in media]
    pieces = [patches for patches, _ in loaded]
    if (total := sum(map(len, pieces))) > config.max_patches:
        raise ExampleError(
            f"the example's images and videos have {total} patches, and a row has room for {config.max_patches}; raise "
            "max_patches or lower max_pixels"
        )
    return pieces, np.array([grid for _, grid in loaded], np.int64).reshape(-1, 3)


def chat_of(example: VideoExample, config: PipelineConfig) -> ChatRule:
    """How an example chats: with its own system prompt, if it has one."""
    return config.chat if example.system is None else dataclasses.replace(config.chat, system_prompt=example.system)


def _placing(config: PipelineConfig, special_tokens: SpecialTokens) -> Json:
    return {
        "variant": config.variant,
        "gap": config.gap,
        "second_per_grid_t": config.geometry.frame_seconds(config.fps),
        "tokens_per_second": config.geometry.tokens_per_second,
        "merge_size": config.geometry.merge_size,
        "special_tokens": special_tokens,
    }


def _lay_out(
    example: VideoExample,
    config: PipelineConfig,
    tokenizer: Tokenizer,
    special_tokens: SpecialTokens,
    *,
    question: str,
    answer: str,
    grid: tuple[int, int, int],
) -> StreamLayout:
    place = _placing(config, special_tokens)
    if not example.questions:
        text = encode_text(example, config, tokenizer, special_tokens, question=question, answer=answer, grid=grid)
        return build_layout(text[0], np.array([grid]), schedule=text[1], **place)
    if config.speaking != "decide":
        raise ExampleError("questions in mid-video are answered by a model that decides; train with speaking='decide'")
    arrival_s = frame_arrivals(grid[0], fps=config.fps, pictures=config.geometry.temporal_patch_size)
    events = encode_questions(
        example,
        tokenizer,
        special_tokens,
        question=question,
        grid=grid,
        arrival_s=arrival_s,
        merge_size=config.geometry.merge_size,
        chat=chat_of(example, config),
    )
    return build_conversation(events, **place)


def _joined(kept: Iterable[Bool[np.ndarray, "_"]]) -> Bool[np.ndarray, "U"]:
    return np.concatenate([np.zeros(0, bool), *kept])


def _without_dropped(layout: StreamLayout, kept: Bool[np.ndarray, "U"], special: SpecialTokens) -> StreamLayout:
    stays = np.ones(len(layout), bool)
    stays[layout.token_ids == special.video_pad] = kept
    return prune_layout(layout, stays)


def encode_text(
    example: VideoExample,
    config: PipelineConfig,
    tokenizer: Tokenizer,
    special_tokens: SpecialTokens,
    *,
    question: str,
    answer: str,
    grid: tuple[int, int, int],
) -> tuple[Int32[np.ndarray, "L"], int | list[int]]:
    """The chat about an example, and the answer tokens a frame.

    Args:
        example: what it is about.
        config: how the answer is spoken.
        tokenizer: the model's.
        special_tokens: their ids.
        question: what the user asks.
        answer: what is to be answered.
        grid: the video in patches (t, h, w).

    Raises:
        ExampleError: if question or answer cannot be used, or the answer does not fit the video.
    """
    merge_size, chat = config.geometry.merge_size, chat_of(example, config)
    if config.speaking == "decide":
        arrival_s = frame_arrivals(grid[0], fps=config.fps, pictures=config.geometry.temporal_patch_size)
        return encode_decisions(
            example, tokenizer, question=question, grid=grid, arrival_s=arrival_s, merge_size=merge_size, chat=chat
        )
    ids = encode_chat(
        tokenizer,
        question=question,
        answer=answer,
        later=example.later,
        video_grid_thw=grid,
        merge_size=merge_size,
        chat=chat,
    )
    return ids, answer_schedule(example, ids, grid, config, tokenizer, special_tokens)


def frame_arrivals(frames: int, *, fps: float, pictures: int) -> Float[np.ndarray, "F"]:
    """When each frame has arrived, in seconds: when the last of its pictures is on screen.

    Args:
        frames: how many there are.
        fps: pictures a second.
        pictures: of a frame.
    """
    return (np.arange(1, frames + 1) * pictures - 1) / fps


def answer_schedule(
    example: VideoExample,
    ids: Int32[np.ndarray, "L"],
    grid: tuple[int, int, int],
    config: PipelineConfig,
    tokenizer: Tokenizer,
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
    arrival_s = frame_arrivals(grid[0], fps=config.fps, pictures=config.geometry.temporal_patch_size)
    starts = [sentence.time_s for sentence in example.sentences]
    end_s = grid[0] * config.geometry.temporal_patch_size / config.fps
    if starts[-1] > end_s:
        raise ExampleError(f"a sentence starts at {starts[-1]:g} s, but the video ends at {end_s:g} s")
    lengths = sentence_tokens(tokenizer, [sentence.text for sentence in example.sentences])
    spoken_in = lengths > 0  # what shares its only token with the next sentence waits for that one
    starts = np.minimum(starts, arrival_s[-1])[spoken_in].tolist()
    return aligned_schedule(lengths[spoken_in].tolist(), starts, arrival_s, wait_k=config.wait_k).tolist()


def first_answer(ids: Int32[np.ndarray, "L"], special: SpecialTokens) -> Int32[np.ndarray, "N"]:
    """Tokens of the answer about the video: between the assistant's prefix and its `<|im_end|>`."""
    after_video = np.flatnonzero(ids == special.video_pad)[-1]
    starts = np.flatnonzero(ids == special.im_start)
    answer = ids[starts[starts > after_video][0] + len(special.prefix) :]
    return answer[: np.flatnonzero(answer == special.im_end)[0]]
