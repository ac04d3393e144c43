"""What a model says about the videos of a split, streamed one after another."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from swjax.data.example import ExampleError, Rejected, VideoExample
from swjax.inference import Engine, Frame, FrameSeen, StreamSession, StreamSettings, TokenSpoken
from swjax.streaming import random_schedule

Schedule = Callable[[str, int], Sequence[int]]
"""From the key of an example and the number of its frames to the tokens spoken after each."""


@dataclass(frozen=True)
class Prediction:
    """An answer about one video.

    Attributes:
        key: of the example.
        reference: the example's caption.
        text: the answer.
        ended: whether it ended by itself, not at the limit on tokens.
        frames: frames that were seen.
        token_ids: the answer's tokens.
        words: what each token adds to the text.
        after_frame: for each token, the newest frame that it could see.
        video_s: for each token, the time in the video, in seconds, at which that frame was whole: the earliest at which
            the token can be spoken.
        wall_s: for each token, seconds since the session began.
    """

    key: str
    reference: str
    text: str
    ended: bool
    frames: int
    token_ids: tuple[int, ...]
    words: tuple[str, ...]
    after_frame: tuple[int, ...]
    video_s: tuple[float, ...]
    wall_s: tuple[float, ...]


def predict(
    engine: Engine,
    tokenizer: Any,
    examples: Iterable[VideoExample],
    *,
    question: str,
    settings: StreamSettings,
    read: Callable[[VideoExample], Iterable[Frame]],
    schedule: Schedule | None = None,
) -> Iterator[Prediction | Rejected]:
    """Stream every video as fast as possible and yield what is said, or why the video could not be used.

    Args:
        engine: the model.
        tokenizer: its tokenizer.
        examples: what to answer about; an example's own question goes before `question`.
        question: what to ask.
        settings: how to stream.
        read: the frames of an example; may raise `ExampleError`.
        schedule: counts in the place of wait-k. They need the number of frames, so a video is decoded before it begins.
    """
    for example in examples:
        try:
            frames = read(example)
            if schedule is not None:
                frames = list(frames)
                settings = replace(settings, counts=tuple(schedule(example.key, len(frames))))
            yield _answer(engine, tokenizer, example, example.question or question, settings, frames)
        except ExampleError as error:
            yield Rejected(example.key, str(error))


def perturbed_schedule(wait_k: int, seed: int) -> Schedule:
    """Random schedules at wait-k's mean pace: after each frame 0 to 2k tokens, each count as likely, independently.

    The paper perturbs schedules without giving a distribution; this is ours. A video's schedule depends on the seed
    and on its key alone, not on what is evaluated beside it.
    """

    def schedule(key: str, frames: int) -> Sequence[int]:
        counts = random_schedule(frames, low=0, high=2 * wait_k, seed=(seed, zlib.crc32(key.encode())))
        return tuple(int(count) for count in counts)

    return schedule


def blank_frames(frames: Iterable[Frame]) -> Iterator[Frame]:
    """The same frames with nothing on them, all mid-grey: what a model says to these, it has not seen."""
    for frame in frames:
        yield replace(frame, patches=np.full_like(frame.patches, 128))


def _answer(
    engine: Engine,
    tokenizer: Any,
    example: VideoExample,
    question: str,
    settings: StreamSettings,
    frames: Iterable[Frame],
) -> Prediction:
    session = StreamSession(engine, tokenizer, question=question, settings=settings)
    seen: list[FrameSeen] = []
    spoken: list[TokenSpoken] = []
    for event in session.run(frames):
        if isinstance(event, FrameSeen):
            seen.append(event)
        elif isinstance(event, TokenSpoken):
            spoken.append(event)
    return Prediction(
        key=example.key,
        reference=example.caption,
        text=session.text(),
        ended=session.ended,
        frames=len(seen),
        token_ids=tuple(event.token_id for event in spoken),
        words=tuple(event.text for event in spoken),
        after_frame=tuple(event.after_frame for event in spoken),
        video_s=tuple(seen[event.after_frame].video_s for event in spoken),
        wall_s=tuple(round(event.wall_s, 4) for event in spoken),
    )
