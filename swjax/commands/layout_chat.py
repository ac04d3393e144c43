"""The chats that `swjax layout` lays out: an example, a text, a line of a manifest, or token ids from a file."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from swjax.commands.say import UsageError
from swjax.storage import AnyPath
from swjax.streaming import DEFAULT_GEOMETRY, SpecialTokens
from swjax.streaming.tokens import Tokenizer

MERGE = DEFAULT_GEOMETRY.merge_size

FIRST_WORD, FIRST_OF_QUESTION = 100_000, 149_000
"""Ids that stand for words where no tokenizer is asked."""
QUESTION = ("user", "What", "happens?")
MAX_PATCHES = 2**19
"""Of an example; a longer video is refused."""


@dataclass(frozen=True)
class Chat:
    """A chat to lay out.

    Attributes:
        input_ids: int[L] in chat order.
        video_grid_thw, image_grid_thw: sizes in patches.
        special: ids of the tokens that give the chat its structure.
        text_of: text of a token's id.
    """

    input_ids: Int[np.ndarray, "L"]
    video_grid_thw: Int[np.ndarray, "videos 3"]
    image_grid_thw: Int[np.ndarray, "images 3"]
    special: SpecialTokens
    text_of: Callable[[int], str]

    @property
    def num_frames(self) -> int:
        """Frames of all videos."""
        return int(self.video_grid_thw[:, 0].sum())


def example_chat(grid: tuple[int, int, int], words: int) -> Chat:
    """A short question about a video, and an answer of so many words.

    Args:
        grid: frames, and rows and columns of a frame in tokens.
        words: length of the answer.
    """
    frames, rows, columns = grid
    special = SpecialTokens.qwen2_5_vl()
    user, *asked = range(FIRST_OF_QUESTION, FIRST_OF_QUESTION + len(QUESTION))
    ids = [special.im_start, user, special.newline, *asked, special.vision_start]
    ids += [special.video_pad] * (frames * rows * columns)
    ids += [*special.trailer, *special.prefix, *range(FIRST_WORD, FIRST_WORD + words), special.im_end, special.newline]
    return Chat(np.array(ids), np.array([[frames, MERGE * rows, MERGE * columns]]), _none(), special, _example_word)


def text_chat(grid: tuple[int, int, int], question: str, answer: str, tokenizer_path: str | None) -> Chat:
    """A chat with an answer in a tokenizer's own tokens.

    Args:
        grid: frames, and rows and columns of a frame in tokens.
        question: the user's text.
        answer: the assistant's text.
        tokenizer_path: folder of the tokenizer; None for the small one that is shipped.
    """
    frames, rows, columns = grid
    from swjax.data.tokenizer import load_tokenizer

    return _encoded(load_tokenizer(tokenizer_path), question, answer, (frames, MERGE * rows, MERGE * columns))


def manifest_chat(
    manifest: AnyPath,
    key: str | None,
    question: str | None,
    tokenizer_path: str | None,
    *,
    fps: float,
    pixels: tuple[int, int],
    wait_k: int,
) -> tuple[Chat, list[int] | None]:
    """An example of a data set, all of its turns, with its video decoded and sized as training would.

    Args:
        manifest: the JSON lines file.
        key: the `video_id` of the example; None takes the first.
        question: what to ask; None takes the example's own question or evaluation's.
        tokenizer_path: folder of the tokenizer; None for the small one that is shipped.
        fps: frames a second that are taken from the video.
        pixels: smallest and largest area of a resized frame.
        wait_k: most answer tokens after a frame, where the example's sentences have times.

    Returns:
        The chat, and the answer tokens after each frame as the times of its sentences allow; None without such times.

    Raises:
        UsageError: if the manifest has no such example.
        ExampleError: if its video cannot be used.
    """
    from swjax.data.chat import EVALUATION_QUESTION
    from swjax.data.encoding import answer_schedule, load_patches
    from swjax.data.manifest import read_manifest
    from swjax.data.pipeline_config import PipelineConfig
    from swjax.data.tokenizer import load_tokenizer

    examples = {example.key: example for example in read_manifest(manifest).examples}
    if key is not None and key not in examples:
        known = ", ".join(list(examples)[:3])
        raise UsageError(f"{manifest} has no usable example {key!r}; the first of its {len(examples)} keys are {known}")
    example = examples[key] if key is not None else next(iter(examples.values()))
    config = PipelineConfig(
        batch_size=1,
        max_tokens=MAX_PATCHES,
        max_patches=MAX_PATCHES,
        wait_k=wait_k,
        fps=fps,
        min_pixels=pixels[0],
        max_pixels=pixels[1],
    )
    if example.video is None:
        raise UsageError(f"{example.key} is about images, several videos or none; `swjax layout --chat` lays those out")
    _, grid = load_patches(example.video, config)
    asked = question or example.question or EVALUATION_QUESTION
    tokenizer = load_tokenizer(tokenizer_path)
    chat = _encoded(tokenizer, asked, example.caption, grid, example.later)
    if not example.sentences:
        return chat, None
    schedule = answer_schedule(example, chat.input_ids, grid, config, tokenizer, chat.special)
    return chat, schedule if isinstance(schedule, list) else None


def read_chat(file: AnyPath, tokenizer_path: str | None) -> Chat:
    """A chat from a JSON file with input_ids, video_grid_thw and image_grid_thw.

    Args:
        file: the file.
        tokenizer_path: folder of the tokenizer of the ids; None where they are Qwen2.5-VL's, shown as numbers.

    Raises:
        UsageError: if the file cannot be read.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        ids = np.array(record["input_ids"])
        videos, images = (np.array(record.get(f"{name}_grid_thw", [])) for name in ("video", "image"))
        if ids.ndim != 1 or any(array.size and array.dtype.kind != "i" for array in (ids, videos, images)):
            raise ValueError("input_ids must be a list of integers, and grids lists of [frames, rows, columns]")
        videos, images = (grid.astype(np.int64).reshape(-1, 3) for grid in (videos, images))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{file} cannot be read ({type(error).__name__}: {error}); it must be JSON with input_ids and "
            "video_grid_thw, see swjax layout --help"
        ) from error
    if tokenizer_path is None:
        return Chat(ids, videos, images, SpecialTokens.qwen2_5_vl(), str)
    from swjax.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_path)
    return Chat(ids, videos, images, SpecialTokens.from_tokenizer(tokenizer), tokenizer.decode)


def _encoded(
    tokenizer: Tokenizer, question: str, answer: str, grid: tuple[int, int, int], later: Sequence[tuple[str, str]] = ()
) -> Chat:
    from swjax.data.chat import encode_chat

    ids = encode_chat(tokenizer, question=question, answer=answer, later=later, video_grid_thw=grid)
    return Chat(ids, np.array([grid]), _none(), SpecialTokens.from_tokenizer(tokenizer), tokenizer.decode)


def _none() -> Int[np.ndarray, "0 3"]:
    return np.zeros((0, 3), np.int64)


def _example_word(token: int) -> str:
    return QUESTION[token - FIRST_OF_QUESTION] if token >= FIRST_OF_QUESTION else f"word{token - FIRST_WORD}"
