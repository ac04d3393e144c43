"""What a model says about the videos of a split, streamed one after another."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from swjax.data.example import ExampleError, Rejected, VideoExample
from swjax.inference import Engine, Frame, StreamSession, StreamSettings


@dataclass(frozen=True)
class Prediction:
    """An answer about one video.

    Attributes:
        key: of the example.
        text: the answer.
        ended: whether it ended by itself, not at the limit on tokens.
        after_frame: for each token, the newest frame that it could see.
        reference: the example's caption.
    """

    key: str
    text: str
    ended: bool
    after_frame: tuple[int, ...]
    reference: str


def predict(
    engine: Engine,
    tokenizer: Any,
    examples: Sequence[VideoExample],
    *,
    question: str,
    settings: StreamSettings,
    read: Callable[[VideoExample], Iterable[Frame]],
) -> Iterator[Prediction | Rejected]:
    """Stream every video as fast as possible and yield what is said, or why the video could not be used.

    Args:
        engine: the model.
        tokenizer: its tokenizer.
        examples: what to answer about; an example's own question goes before `question`.
        question: what to ask.
        settings: how to stream.
        read: the frames of an example; may raise `ExampleError`.
    """
    for example in examples:
        session = StreamSession(engine, tokenizer, question=example.question or question, settings=settings)
        try:
            spoken = [event.after_frame for event in session.run(read(example)) if hasattr(event, "after_frame")]
        except ExampleError as error:
            yield Rejected(example.key, str(error))
            continue
        yield Prediction(example.key, session.text(), session.ended, tuple(spoken), example.caption)


def blank_frames(frames: Iterable[Frame]) -> Iterator[Frame]:
    """The same frames with nothing on them, all mid-grey: what a model says to these, it has not seen."""
    for frame in frames:
        yield replace(frame, patches=np.full_like(frame.patches, 128))
