"""When what is said: turns the events of a scene into a caption that never runs ahead of what has been seen.

At wait-3, answer token j is spoken after frame min(j // 3, F - 1), and frame f shows the samples at f and f + 0.5
seconds. The narrator speaks whole sentences. Before each one he looks at the newest frame: the first event that he
has not told yet is told as soon as it shows; if nothing new shows, he fills the time with where the shape is heading;
and once the last frame is there and everything is told, he stops. So the caption is a function of what has been
visible so far, and a model can learn when an event is due and when a filler is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from swjax.data.moving_shapes.grammar import Event, heading_after, split_tokens, write_sentence

TOKENS_PER_FRAME = 3
MIN_TOKENS_PER_SECOND, MAX_TOKENS_PER_SECOND = 3, 6
SECONDS_PER_SAMPLE = 0.5


@dataclasses.dataclass(frozen=True)
class TimedEvent:
    """An event, the time in seconds at which it happens, and that of the first sample (at 2 fps) that shows it."""

    event: Event
    time_s: float
    visible_s: float


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence of a narrated caption.

    Attributes:
      text: the sentence, without the space before it.
      event: what it says; a filler is an event of kind `move`.
      first_token: the index, in the caption, of its first token.
    """

    text: str
    event: Event
    first_token: int


def seen_until(token: int, num_frames: int) -> float:
    """The time in seconds of the newest sample that is visible when answer token `token` is spoken."""
    return min(token // TOKENS_PER_FRAME, num_frames - 1) + SECONDS_PER_SAMPLE


def narrate(events: Sequence[TimedEvent], num_frames: int) -> tuple[Sentence, ...] | None:
    """The sentences for `events`, the first of which enters, in a video of `num_frames` frames of one second.

    Returns None if there is no fitting caption: if there comes a time with nothing true to say, if an event never
    shows, or if the caption would have fewer than 3 or more than 6 tokens a second (the paper's filter).
    """
    pending = list(events)
    sentences: list[Sentence] = []
    token, heading = 0, ""
    while True:
        now = seen_until(token, num_frames)
        if not sentences or (pending and pending[0].visible_s <= now):
            event = pending.pop(0).event
        elif now >= num_frames - SECONDS_PER_SAMPLE:
            break
        elif sentences[-1].event.kind == "leave":
            return None
        else:
            event = Event("move", direction=heading)
        heading = heading_after(event, heading)
        text = write_sentence(event, sentences[-1].event if sentences else None)
        sentences.append(Sentence(text, event, token))
        token += len(split_tokens(text))
    fits = MIN_TOKENS_PER_SECOND * num_frames <= token <= MAX_TOKENS_PER_SECOND * num_frames
    return tuple(sentences) if fits and not pending else None
