"""From an example of an original release to a record: which examples are taken, and how their frames are kept.

There is no model yet, so frames are kept at sizes of the default geometry; a model of another one resizes them.
"""

import functools
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from swjax.data.clips import QUALITY, encode_clip
from swjax.data.example import ExampleError, Rejected, VideoExample
from swjax.data.patches import resize, resized_size
from swjax.data.text import check_text
from swjax.data.tokenizer import load_tokenizer
from swjax.data.video import DEFAULT_MAX_FRAMES, iter_frames
from swjax.streaming import DEFAULT_GEOMETRY
from swjax.streaming.spec import StreamSpec, check_spec

Record = dict[str, Any]
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

    def to_json(self) -> dict[str, Any]:
        """The settings, plain."""
        return asdict(self)


def make_record(example: VideoExample, recipe: Recipe) -> Record | Rejected | LeftOut:
    """Decode, sample, resize and encode an example.

    The texts are looked at before the video is opened: most of a large release is left out for its texts.
    """
    try:
        return _make_record(example, recipe)
    except ExampleError as error:
        named = str(error) if str(example.video) in str(error) else f"{example.video}: {error}"
        return Rejected(example.key, named)


def _make_record(example: VideoExample, recipe: Recipe) -> Record | LeftOut:
    texts = [(example.question, example.caption), *example.others]
    check_text(example.key, "key")
    check_text(str(example.video), "path of the video")
    asked = [(one.text, sentence.text) for one in example.questions for sentence in one.sentences]
    for question, answer in (*texts, *asked, *example.later):
        check_text(question or "", "question")
        check_text(answer, "answer")
    texts = [(question, answer) for question, answer in texts if answer.startswith(recipe.prefix)]
    if not texts:
        return LeftOut(example.key, f"no answer begins with {recipe.prefix!r}")
    frames: list[np.ndarray] = []
    most = DEFAULT_MAX_FRAMES if recipe.max_seconds is None else math.ceil(recipe.max_seconds * recipe.fps)
    for _, frame in iter_frames(example.video, recipe.fps):
        if len(frames) == most + DEFAULT_GEOMETRY.temporal_patch_size - 1:
            return LeftOut(example.key, f"longer than {most / recipe.fps:g} s")
        frames.append(frame)
    usable = len(frames) - len(frames) % DEFAULT_GEOMETRY.temporal_patch_size
    seconds = usable / recipe.fps
    if not usable:
        shortest = DEFAULT_GEOMETRY.frame_seconds(recipe.fps)
        raise ExampleError(f"{example.video} is shorter than one frame ({shortest:g} s)")
    if recipe.min_seconds is not None and seconds < recipe.min_seconds:
        return LeftOut(example.key, f"shorter than {recipe.min_seconds:g} s")
    if recipe.max_seconds is not None and seconds > recipe.max_seconds:
        return LeftOut(example.key, f"longer than {recipe.max_seconds:g} s")
    if recipe.min_rate is not None or recipe.max_rate is not None:
        least, most_rate = recipe.min_rate or 0.0, math.inf if recipe.max_rate is None else recipe.max_rate
        texts = [pair for pair in texts if least <= _num_tokens(recipe.tokenizer, pair[1]) / seconds <= most_rate]
        if not texts:
            return LeftOut(example.key, f"no answer of {least:g} to {most_rate:g} tokens a second")
    clip = np.stack(frames[:usable])
    height, width = resized_size(
        *clip.shape[1:3],
        min_pixels=recipe.min_pixels,
        max_pixels=recipe.max_pixels,
        factor=DEFAULT_GEOMETRY.token_size,
    )
    return {
        "key": example.key,
        "source": str(example.video),
        "frames": list(encode_clip(resize(clip, height, width), quality=recipe.quality)),
        "height": clip.shape[1],
        "width": clip.shape[2],
        "fps": recipe.fps,
        "questions": [question or "" for question, _ in texts],
        "answers": [answer for _, answer in texts],
        "sentences": [sentence.text for sentence in example.sentences],
        "sentence_times": [sentence.time_s for sentence in example.sentences],
        "asked": [json.dumps(asdict(question)) for question in example.questions],
        "later_questions": [question for question, _ in example.later],
        "later_answers": [answer for _, answer in example.later],
    }


@functools.cache
def _tokenizer(path: str) -> Any:
    return load_tokenizer(path or None)


def _num_tokens(tokenizer: str, text: str) -> int:
    return len(_tokenizer(tokenizer).encode(text, add_special_tokens=False))
