"""From an example of an original release to a record: which examples are taken, and how their frames are kept.

There is no model yet, so frames are kept at sizes of the default geometry; a model of another one resizes them.
"""

import functools
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from swjax.data.clips import QUALITY, encode_clip
from swjax.data.example import ExampleError, Picture, Rejected, Video, VideoExample
from swjax.data.patches import resize, resized_size
from swjax.data.pictures import read_picture
from swjax.data.text import check_text
from swjax.data.tokenizer import load_tokenizer
from swjax.data.video import DEFAULT_MAX_FRAMES, iter_frames
from swjax.plain import Json
from swjax.streaming import DEFAULT_GEOMETRY
from swjax.streaming.spec import StreamSpec, check_spec

Record = Json
"""An example as it is stored; see `swjax.data.records.FEATURES`."""


@dataclass(frozen=True)
class LeftOut:
    """An example that is sound, and that the recipe does not want: which of its limits it is beyond."""

    where: str
    limit: str


@dataclass(frozen=True)
class Recipe:
    """What is taken from a release, and how it is kept.

    Attributes:
        fps: frames a second that are sampled.
        min_pixels, max_pixels: smallest and largest area of a frame; the budget is per frame, so the resolution of a
            frame depends on nothing that comes after it.
        min_seconds, max_seconds: length of a video; None for no limit.
        min_rate, max_rate: tokens of the answer to a second of video; None for no limit.
        prefix: what an answer must begin with.
        tokenizer: what counts the tokens: a folder or Hub id; '' for the one that is shipped with Moving Shapes.
        quality: of the JPEG files, 1 to 100.
    """

    fps: float = StreamSpec.fps
    min_pixels: int = StreamSpec.min_pixels
    max_pixels: int = StreamSpec.max_pixels
    min_seconds: float | None = None
    max_seconds: float | None = None
    min_rate: float | None = None
    max_rate: float | None = None
    prefix: str = ""
    tokenizer: str = ""
    quality: int = QUALITY

    def __post_init__(self) -> None:
        check_spec("fps", self.fps)
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be between 1 and 100, got {self.quality}")
        token = DEFAULT_GEOMETRY.token_size
        resized_size(token, token, min_pixels=self.min_pixels, max_pixels=self.max_pixels, factor=token)  # may refuse
        for name in ("seconds", "rate"):
            least, most = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if least is not None and most is not None and least > most:
                raise ValueError(f"min_{name} is {least}, above max_{name} {most}")

    def to_json(self) -> Json:
        """The settings, plain."""
        return asdict(self)


def make_record(example: VideoExample, recipe: Recipe) -> Record | Rejected | LeftOut:
    """Decode, sample, resize and encode an example.

    The texts are looked at before the video is opened: most of a large release is left out for its texts.
    """
    try:
        return _make_record(example, recipe)
    except ExampleError as error:
        source = _source(example)
        return Rejected(example.key, str(error) if source in str(error) else f"{source}: {error}")


def _make_record(example: VideoExample, recipe: Recipe) -> Record | LeftOut:
    texts = [(example.question, example.caption), *example.others]
    check_text(example.key, "key")
    check_text(_source(example), "path of the video")
    check_text(example.system or "", "system prompt")
    asked = [(one.text, sentence.text) for one in example.questions for sentence in one.sentences]
    for question, answer in (*texts, *asked, *example.later):
        check_text(question or "", "question")
        check_text(answer, "answer")
    texts = [(question, answer) for question, answer in texts if answer.startswith(recipe.prefix)]
    if not texts:
        return LeftOut(example.key, f"no answer begins with {recipe.prefix!r}")
    shown = example.media if example.video is None else (example.video,)
    clips, sizes, seconds = list[tuple[bytes, ...]](), list[tuple[int, int]](), 0.0
    for item in shown:
        if isinstance(item, Picture):
            pictures = read_picture(item)[0][None]
        else:
            read = _read_clip(item, recipe)
            if isinstance(read, str):
                return LeftOut(example.key, read)
            pictures = read
            seconds += len(pictures) / recipe.fps
        sizes.append((pictures.shape[1], pictures.shape[2]))
        height, width = resized_size(
            *sizes[-1],
            min_pixels=recipe.min_pixels,
            max_pixels=recipe.max_pixels,
            factor=DEFAULT_GEOMETRY.token_size,
        )
        clips.append(encode_clip(resize(pictures, height, width), quality=recipe.quality))
    if seconds and (recipe.min_rate is not None or recipe.max_rate is not None):
        least, most_rate = recipe.min_rate or 0.0, math.inf if recipe.max_rate is None else recipe.max_rate
        texts = [pair for pair in texts if least <= _num_tokens(recipe.tokenizer, pair[1]) / seconds <= most_rate]
        if not texts:
            return LeftOut(example.key, f"no answer of {least:g} to {most_rate:g} tokens a second")
    is_mixed = example.video is None
    return {
        "key": example.key,
        "source": _source(example),
        "frames": [frame for clip in clips for frame in clip],
        "height": 0 if is_mixed else sizes[0][0],
        "width": 0 if is_mixed else sizes[0][1],
        "fps": recipe.fps,
        "questions": [question or "" for question, _ in texts],
        "answers": [answer for _, answer in texts],
        "sentences": [sentence.text for sentence in example.sentences],
        "sentence_times": [sentence.time_s for sentence in example.sentences],
        "asked": [json.dumps(asdict(question)) for question in example.questions],
        "later_questions": [question for question, _ in example.later],
        "later_answers": [answer for _, answer in example.later],
        "system": example.system or "",
        "media": [
            0 if isinstance(item, Picture) else len(clip) for item, clip in zip(example.media, clips, strict=is_mixed)
        ],
        "media_heights": [height for height, _ in sizes] if is_mixed else [],
        "media_widths": [width for _, width in sizes] if is_mixed else [],
    }


def _source(example: VideoExample) -> str:
    """What an example shows, in words."""
    return str(example.video) if example.video is not None else ", ".join(map(str, example.media)) or "text alone"


def _read_clip(video: Video, recipe: Recipe) -> UInt8[np.ndarray, "frames height width 3"] | str:
    """The sampled frames of a video, or which limit of the recipe it is beyond."""
    frames: list[np.ndarray] = []
    most = DEFAULT_MAX_FRAMES if recipe.max_seconds is None else math.ceil(recipe.max_seconds * recipe.fps)
    for _, frame in iter_frames(video, recipe.fps):
        if len(frames) == most + DEFAULT_GEOMETRY.temporal_patch_size - 1:
            return f"longer than {most / recipe.fps:g} s"
        frames.append(frame)
    usable = len(frames) - len(frames) % DEFAULT_GEOMETRY.temporal_patch_size
    seconds = usable / recipe.fps
    if not usable:
        shortest = DEFAULT_GEOMETRY.frame_seconds(recipe.fps)
        raise ExampleError(f"{video} is shorter than one frame ({shortest:g} s)")
    if recipe.min_seconds is not None and seconds < recipe.min_seconds:
        return f"shorter than {recipe.min_seconds:g} s"
    if recipe.max_seconds is not None and seconds > recipe.max_seconds:
        return f"longer than {recipe.max_seconds:g} s"
    return np.stack(frames[:usable])


@functools.cache
def _tokenizer(path: str) -> Any:
    return load_tokenizer(path or None)


def _num_tokens(tokenizer: str, text: str) -> int:
    return len(_tokenizer(tokenizer).encode(text, add_special_tokens=False))
